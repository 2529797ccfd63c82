"""What membership needs of the links between nodes; ``edgeorch.wire.links`` is the real one."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from edgeorch.identity import PeerIdentity
from edgeorch.wire import From
from edgeorch.wire.messages import Hello, Message

Address: TypeAlias = tuple[str, int]
"""IP address (or host name) and port."""


class LinkControl(Protocol):
    """Says which nodes to keep links to, and asks over them.

    Attributes:
        on_hello: called for each new link with who is at its other end.
        on_up: called with a node id when there is a link and was none.
        on_down: called with a node id and the reason when a link broke that nobody meant to close.
        on_barred: called with a node id and the reason when its certificate was revoked.
    """

    on_hello: Callable[[From, Hello, PeerIdentity], None]
    on_up: Callable[[str], None]
    on_down: Callable[[str, str], None]
    on_barred: Callable[[str, str], None]

    def want(self, node_id: str, addresses: Sequence[Address]) -> None:
        """Keep a link to this node, at one of these addresses, best first; a new call replaces them."""
        ...

    def unwant(self, node_id: str) -> None:
        """Close the link and dial no more."""
        ...

    def drop(self, node_id: str) -> None:
        """Close the link now: nothing answers on it. A wanted node is dialled again, with backoff."""
        ...

    def retry(self) -> None:
        """This machine's network is another now: dial every lost node at once, whatever failed before."""
        ...

    async def dial_unknown(self, host: str, port: int) -> str:
        """Open a link to whoever answers there; returns its id, one's own where the address leads back.

        Raises:
            NodeUnreachableError: nobody of the fleet answers there.
        """
        ...

    def recheck(self) -> None:
        """Certificates or the revocation list changed: cut who is revoked, replace links of an old CA."""
        ...

    def connected(self, node_id: str) -> bool:
        """Whether a link is up now."""
        ...

    async def call(self, node_id: str, request: Message) -> Any:  # noqa: ANN401  the request's answer type
        """Send a request and wait for its answer, as ``wire.Peers.call``."""
        ...


class Revocations(Protocol):
    """The revocation list of this node; ``edgeorch.identity.Identity`` is the real one."""

    @property
    def crl_number(self) -> int:
        """Number of the list in force, 0 for none."""
        ...

    @property
    def crl_pem(self) -> bytes:
        """The list in force; empty for none."""
        ...

    def take_crl(self, pem: bytes) -> bool:
        """Put a list in force if it is newer; raises ``IdentityError`` when it is not of this fleet."""
        ...
