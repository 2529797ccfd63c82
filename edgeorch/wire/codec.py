"""Bodies of frames: messages by their type's name, and expected errors as ``Failure`` and back."""

import msgspec

from edgeorch.errors import EdgeorchError, UnsupportedMessageError, WireError, problem_types
from edgeorch.wire.frames import BAD_DATA, Frame
from edgeorch.wire.messages import TYPES, Failure, Message, Unsupported

_decoders = {name: msgspec.msgpack.Decoder(kind) for name, kind in TYPES.items()}


def body(frame: Frame) -> Message:
    """The message in a frame.

    Raises:
        UnsupportedMessageError: this version does not know its type.
        WireError: its content is not what the type says.
    """
    decoder = _decoders.get(frame.type)
    if decoder is None:
        raise UnsupportedMessageError(f"this node does not know the message {frame.type[:64]!r}")
    try:
        return decoder.decode(frame.body)
    except BAD_DATA as error:
        raise WireError(f"{frame.type} cannot be read: {error}") from None


def good(frame: Frame) -> Message:
    """The message in an answer or a stream's frame, unless it says that the request failed.

    Raises:
        EdgeorchError: what the peer answered, as its own type.
        UnsupportedMessageError: the peer does not know the request, or this node not the answer.
        WireError: the content is not what the type says.
    """
    message = body(frame)
    if isinstance(message, Failure):
        raise as_error(message)
    if isinstance(message, Unsupported):
        raise UnsupportedMessageError(f"the peer does not know the message {message.type[:64]!r}")
    return message


def answer(frame: Frame, request: type[Message]) -> Message:
    """The answer to a request of type ``request``; raises as ``good`` does, and for any other answer."""
    message = good(frame)
    if type(message) is not request.answer:
        raise WireError(f"{frame.type[:64]} is no answer to {request.__name__}")
    return message


def as_failure(error: EdgeorchError) -> Message:
    """What is sent for an expected error."""
    return Failure(slug=error.slug, detail=error.detail, hint=error.hint)


def as_error(failure: Failure) -> EdgeorchError:
    """The error that the peer raised; its base class where this version does not know the slug."""
    return problem_types().get(failure.slug, EdgeorchError)(failure.detail, hint=failure.hint)
