"""Node to node: frames, messages, links and the listener, over TLS 1.3 on plain Trio sockets.

The parts above see three things: ``Peers`` to ask other nodes, ``Handlers`` to be asked, and ``Sender`` to
answer a stream.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgeorch.wire.messages import Message


@dataclass(frozen=True)
class From:
    """Who sent a message, proven by its certificate.

    Attributes:
        node_id: the peer's id from its URI SAN.
        name: the name in its certificate.
        address: IP address of the connection.
    """

    node_id: str
    name: str
    address: str


class Sender(Protocol):
    """The sending side of a stream; ``send`` waits while the receiver does not read."""

    async def send(self, message: Message) -> None:
        """Send one message; raises ``NodeUnreachableError`` when the receiver is gone."""
        ...


Handler = Callable[[From, Any], Awaitable[Message]]
InstantHandler = Callable[[From, Any], Message]
StreamHandler = Callable[[From, Any, Sender], Awaitable[None]]


@dataclass
class Handlers:
    """Message type to the function that answers it; filled in by ``node.py`` before the listener starts.

    An ``EdgeorchError`` from a handler is sent as ``Failure``; anything else is logged with its traceback,
    answered with a ``Failure`` and contained to that request's connection.

    Attributes:
        requests: answered in a task of its own each.
        streams: answered with a stream.
        instant: answered by the link's reader, at once: what comes every second from everybody.
    """

    requests: dict[type[Message], Handler] = field(default_factory=dict)
    streams: dict[type[Message], StreamHandler] = field(default_factory=dict)
    instant: dict[type[Message], InstantHandler] = field(default_factory=dict)


class Peers(Protocol):
    """Ways to other nodes, by node id. ``wire.links`` is the real one, ``testing`` has one in memory."""

    async def call(self, node_id: str, request: Message) -> Any:  # noqa: ANN401  the request's answer type
        """Send a request and wait for its answer; the caller's deadline travels along.

        Cancelling the call tells the peer and leaves the link usable.

        Raises:
            NodeUnreachableError: no link and none can be made now, or it broke. Its ``sent`` attribute is
                False when the request certainly never left this node.
            EdgeorchError: what the peer answered, as its own type.
            UnsupportedMessageError: the peer does not know this message.
        """
        ...

    def stream(self, node_id: str, request: Message) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """Open a connection of its own for a stream of messages; leaving the context closes it."""
        ...

    def connected(self, node_id: str) -> bool:
        """Whether a link is up now."""
        ...

    def statistics(self) -> Mapping[str, Any]:
        """Counts for ``/metrics``."""
        ...
