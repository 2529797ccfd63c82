"""Bodies and query strings into typed data; what is wrong is named with its place and the nearest word."""

import difflib
import enum
import functools
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from edgeorch.errors import InvalidRequestError, UnsupportedMediaTypeError
from edgeorch.model import TaskSpec
from edgeorch.rest.backend import Submission

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

NOT_EMPTY = msgspec.Meta(min_length=1)
"""Of a batch, which ``api.max_body`` bounds above."""
QUERY = "query"
_WHERE = re.compile(r"(?P<reason>.*?)(?: - at `(?P<path>\$[^`]*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_BAD_WORD = re.compile(r"Invalid (?:enum )?value '(?P<word>.*)'", re.DOTALL)
_STEP = re.compile(r"\.(?P<key>[^.\[]+)|\[(?P<item>[^\]]*)\]")
_TEXT_OF_BYTE = re.compile(r"\(byte (\d+)\)")


class InvalidValueError(InvalidRequestError):
    """A value in the body or the query; ``extra`` goes into the problem."""

    def __init__(self, detail: str, *, path: str, hint: str = "") -> None:
        super().__init__(detail, hint=hint)
        self.extra = {"path": path}


def check_json(content_type: str | None) -> None:
    """Refuse a body that does not say it is JSON.

    Raises:
        UnsupportedMediaTypeError: another or no Content-Type.
    """
    media = (content_type or "").partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        said = f"the Content-Type is {media!r}" if media else "there is no Content-Type"
        raise UnsupportedMediaTypeError(said, hint="send Content-Type: application/json")


def submissions_of(body: bytes) -> tuple[list[Submission], bool]:
    """The specs in a body, and whether they came as a list.

    Raises:
        InvalidRequestError: with the JSON path of what is wrong.
    """
    if not body.lstrip(b" \t\r\n").startswith(b"["):
        return [Submission.of(decoded(body, TaskSpec), body)], False
    parts: list[msgspec.Raw] = decoded(body, Annotated[list[msgspec.Raw], NOT_EMPTY])
    return [
        Submission.of(decoded(bytes(part), TaskSpec, at=f"$[{index}]"), bytes(part))
        for index, part in enumerate(parts)
    ], True


def decoded(body: bytes, kind: Any, *, at: str = "$") -> Any:  # noqa: ANN401  any type, and a value of it
    """A JSON text as ``kind``; ``at`` is the JSON path of the text itself.

    Raises:
        InvalidRequestError: with the JSON path of what is wrong.
    """
    return _explained(lambda: msgspec.json.decode(body, type=kind), kind, at, body)


def object_of(body: bytes) -> dict[str, Any]:
    """Any JSON object.

    Raises:
        InvalidRequestError: it is none.
    """
    document: dict[str, Any] = decoded(body, dict[str, Any])
    return document


def query_of(arguments: Mapping[str, Sequence[str]], kind: type[S]) -> S:
    """A query string as a struct: numbers and booleans are read from their text, lists split at commas.

    Raises:
        InvalidRequestError: an unknown, repeated or wrong parameter.
    """
    if not arguments:
        unasked: S = _unasked(kind)
        return unasked
    lists = _list_parameters(kind)
    values: dict[str, Any] = {}
    for name, given in arguments.items():
        if name in lists:
            values[name] = [word for text in given for word in text.split(",") if word]
        elif len(given) > 1:
            raise InvalidValueError(f"the parameter {name!r} is given {len(given)} times", path=name)
        else:
            values[name] = given[0]
    return _explained(lambda: msgspec.convert(values, kind, strict=False), kind, QUERY, b"")


@functools.cache
def _unasked(kind: type[Any]) -> Any:  # noqa: ANN401  any type, and a value of it
    """What a request without a query asks for; structs do not change, so one is enough."""
    return _explained(lambda: msgspec.convert({}, kind), kind, QUERY, b"")


@functools.cache
def _list_parameters(kind: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(
        field.encode_name
        for field in msgspec.structs.fields(kind)
        if any(typing.get_origin(member) is tuple for member in _members(field.type))
    )


def _explained(decode: Callable[[], T], kind: Any, at: str, body: bytes) -> T:  # noqa: ANN401  any type
    try:
        return decode()
    except msgspec.ValidationError as error:
        raise _invalid(str(error), kind, at) from None
    except msgspec.DecodeError as error:
        raise InvalidValueError(f"the body is not valid JSON: {_placed(str(error), body)}", path=at) from None
    except UnicodeDecodeError as error:
        reason = f"the byte 0x{error.object[error.start]:02x} in a text"
        raise InvalidValueError(f"the body is not UTF-8: {reason}", path=at) from None
    except RecursionError:
        raise InvalidValueError("the body is nested too deeply", path=at) from None


def _placed(reason: str, body: bytes) -> str:
    """A decoder's byte number as line and column, which people can find."""
    reason = reason.removeprefix("JSON is malformed: ")
    found = _TEXT_OF_BYTE.search(reason)
    if found is None:
        return f"{reason} (after {len(body)} bytes)"
    before = body[: int(found[1])]
    column = len(before) - before.rfind(b"\n")
    line = before.count(b"\n") + 1
    return _TEXT_OF_BYTE.sub(f"at line {line}, column {column}", reason)


def _invalid(message: str, kind: Any, at: str) -> InvalidValueError:  # noqa: ANN401  any type
    found = _WHERE.fullmatch(message)
    reason, inner = (found["reason"], found["path"] or "$") if found else (message, "$")
    reason = reason[:300]
    path = at + inner[1:]
    names: Iterable[str] = ()
    hint = ""
    if unknown := _UNKNOWN.fullmatch(reason):
        names, word = _fields(_type_at(kind, inner)), unknown["name"]
        reason = f"unknown {'parameter' if at == QUERY else 'field'} {word!r}"
    elif bad := _BAD_WORD.fullmatch(reason):
        names, word = _words(kind, inner), bad["word"]
        reason = f"{word!r} is not known here"
    else:
        word = ""
        reason = reason[:1].lower() + reason[1:]
    if names:
        near = difflib.get_close_matches(word, list(names), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    if at == QUERY:
        where = f"query parameter {inner[2:]}" if inner[2:] else QUERY
        return InvalidValueError(f"{where}: {reason}", path=inner[2:] or word, hint=hint)
    return InvalidValueError(f"{path}: {reason}", path=path, hint=hint)


# Walking types along a JSON path


def _members(kind: Any) -> list[Any]:  # noqa: ANN401  any type
    """A type without Annotated, None and union."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _members(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(kind) for member in _members(part)]
    return [] if kind is type(None) else [kind]


def _type_at(kind: Any, path: str) -> list[Any]:  # noqa: ANN401  any type
    """The possible types of the value at a path such as ``$.service[0].argv``."""
    now = _members(kind)
    for step in _STEP.finditer(path):
        following: list[Any] = []
        for member in now:
            arguments = typing.get_args(member)
            if step["key"] is not None and isinstance(member, type) and issubclass(member, msgspec.Struct):
                following += [
                    part
                    for field in msgspec.structs.fields(member)
                    if field.encode_name == step["key"]
                    for part in _members(field.type)
                ]
            elif step["item"] is not None and arguments:
                following += [
                    part for argument in arguments if argument is not ... for part in _members(argument)
                ]
        now = following
    return now


def _fields(kinds: Iterable[Any]) -> list[str]:
    names: dict[str, None] = {}
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            if kind.__struct_config__.tag_field:
                names[kind.__struct_config__.tag_field] = None
            names |= {field.encode_name: None for field in msgspec.structs.fields(kind)}
    return list(names)


def _words(kind: Any, path: str) -> list[str]:  # noqa: ANN401  any type
    """The words that are allowed at a path: of a Literal, an enum, or the tags of a union."""
    words: list[str] = []
    for member in _type_at(kind, path):
        if typing.get_origin(member) is Literal:
            words += [str(word) for word in typing.get_args(member)]
        elif isinstance(member, enum.EnumType):
            members: Iterable[enum.Enum] = member.__members__.values()
            words += [str(one.value) for one in members]
    parent, _, key = path.rpartition(".")
    for member in _type_at(kind, parent):
        config = getattr(member, "__struct_config__", None)
        if config is not None and config.tag_field == key:
            words.append(str(config.tag))
    return words
