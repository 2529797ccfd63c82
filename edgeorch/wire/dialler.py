"""Getting a link to one peer, and getting it back: who is dialled when, over which address."""

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeAlias

import structlog
import trio

from edgeorch.errors import NodeUnreachableError
from edgeorch.identity import PeerIdentity
from edgeorch.wire.handshake import HANDSHAKE_S, closed_on_failure, look
from edgeorch.wire.messages import Hello
from edgeorch.wire.transport import DialError, Secured, Transport

Address: TypeAlias = tuple[str, int]
"""Host name or IP address, and port."""
State: TypeAlias = Literal["idle", "connecting", "up", "lost", "refused"]

FIRST_RETRY_S = 0.25
LONGEST_RETRY_S = 10.0
REFUSED_RETRY_S = 60.0
STAGGER_S = 0.25
"""The next address is tried beside the one before after this time (RFC 8305)."""
BETWEEN_DIALS_S = 0.1
"""However often links come and go."""
CLOSED_MEANS_REFUSED = 3
"""A server that refuses a certificate can only close; that often in a row, it does."""

log = structlog.get_logger()


class Dialler:
    """Keeps trying one peer while there is no link to it.

    Attributes:
        addresses: where the peer may be, best first.
        state: ``connecting`` until the first outcome, which callers wait for; ``lost`` and ``refused`` make
            them fail at once while it is tried again; ``idle`` waits for a caller.
        reason: why the last dial failed or the link ended.
    """

    def __init__(
        self,
        node_id: str,
        addresses: Sequence[Address],
        *,
        dial: Callable[[str, Sequence[Address]], Awaitable[None]],
        linked: Callable[[str], bool],
        on_demand: Callable[[], bool],
        rng: random.Random,
    ) -> None:
        self.node_id = node_id
        self.addresses = tuple(addresses)
        self.state: State = "connecting"
        self.reason = ""
        self.scope = trio.CancelScope()
        self._dial = dial
        self._linked = linked
        self._on_demand = on_demand
        self._rng = rng
        self._failures = self._closed = 0
        self._needed = False
        self._soonest = 0.0
        self._changed = trio.Event()

    async def run(self) -> None:
        """Dial whenever it is time to, until ``scope`` is cancelled."""
        with self.scope:
            while True:
                changed = self._changed
                if self._linked(self.node_id):
                    self._failures = self._closed = 0
                    self._become("up")
                    await changed.wait()
                elif not self._failures and self._on_demand() and not self._needed:
                    self._become("idle")
                    await changed.wait()
                elif not await self._attempt():
                    with trio.move_on_after(self._pause()):
                        await self._changed.wait()
                    if self._on_demand():
                        self._failures = 0

    def stop(self) -> None:
        """The peer is not wanted any more; callers that wait for it fail."""
        self.scope.cancel()
        self.state, self.reason = "lost", "not wanted any more"
        self.wake()

    def wake(self) -> None:
        """Look again now: a link came or went, an address or a certificate changed."""
        self._changed.set()
        self._changed = trio.Event()

    def retry(self) -> None:
        """Earlier failures say nothing about the network as it is now: dial at once."""
        self._failures = min(self._failures, 1)
        self.wake()

    def lost(self, reason: str) -> None:
        """The link broke: callers fail at once until there is another."""
        self._failures = self._failures or 1
        self._become("lost", reason)
        self.wake()

    def move(self, addresses: Sequence[Address]) -> None:
        """The peer may be elsewhere now."""
        if tuple(addresses) != self.addresses:
            self.addresses = tuple(addresses)
            self.wake()

    async def ready(self) -> None:
        """Wait for a link where one can be had soon.

        Raises:
            NodeUnreachableError: there is none, and the last try failed.
        """
        while not self._linked(self.node_id):
            if self.state in ("lost", "refused"):
                detail = f"node {self.node_id} is {self.state}: {self.reason}"
                raise NodeUnreachableError(detail, sent=False)
            if not self._needed:
                self._needed = True
                self.wake()
            await self._changed.wait()

    async def _attempt(self) -> bool:
        """Dial once; False asks for a pause."""
        if self.state in ("idle", "up"):
            self._become("connecting")
        await trio.sleep_until(self._soonest)
        self._soonest = trio.current_time() + BETWEEN_DIALS_S
        addresses = self.addresses
        try:
            with trio.move_on_after(HANDSHAKE_S) as scope:
                await self._dial(self.node_id, addresses)
        except DialError as error:
            self._failed(error)
            # Moved while it was dialled: at once again.
            return addresses != self.addresses
        if scope.cancelled_caught:
            self._failed(DialError(f"no answer within {HANDSHAKE_S:.0f} s", reason="slow"))
            return addresses != self.addresses
        self._needed = False
        return True

    def _failed(self, error: DialError) -> None:
        self._failures += 1
        self._closed = self._closed + 1 if error.reason == "closed_at_once" else 0
        if self._closed >= CLOSED_MEANS_REFUSED:
            self._become("refused", f"{error.detail}; it may not accept this node's certificate")
        elif error.refused:
            self._become("refused", error.detail)
        else:
            self._become("lost", error.detail)
        self.wake()

    def _pause(self) -> float:
        """Full jitter, so that a fleet does not dial a node that comes back all at once."""
        if self.state == "refused":
            return REFUSED_RETRY_S
        longest = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** min(self._failures - 1, 10))
        return self._rng.uniform(0, longest)

    def _become(self, state: State, reason: str = "") -> None:
        """Said once per change, not per try."""
        self.reason = reason
        if state == self.state:
            return
        self.state = state
        if state in ("lost", "refused"):
            log.warning("no link", peer=self.node_id, state=state, reason=reason)
        elif state == "up":
            log.info("link up", peer=self.node_id)


async def reach(
    transport: Transport, addresses: Sequence[Address], ours: Hello, expected: str | None
) -> tuple[Secured, PeerIdentity]:
    """Open a connection to the first address that answers as the right node; slow ones are overtaken.

    Raises:
        DialError: none did; the most telling of the reasons.
    """
    errors: list[DialError] = []
    found: list[tuple[Secured, PeerIdentity]] = []
    tried = [trio.Event() for _ in addresses]

    async def attempt(index: int, host: str, port: int) -> None:
        if index:
            with trio.move_on_after(STAGGER_S * index):
                await tried[index - 1].wait()
        try:
            secured = await transport.connect(host, port)
            async with closed_on_failure(secured):
                identity = await look(transport, secured, ours, expected)
        except DialError as error:
            errors.append(error)
            tried[index].set()
            return
        if found:
            await trio.aclose_forcefully(secured.stream)
        found.append((secured, identity))
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for index, (host, port) in enumerate(addresses):
                nursery.start_soon(attempt, index, host, port)
    except BaseException:
        for secured, _ in found:
            await trio.aclose_forcefully(secured.stream)
        raise
    if found:
        return found[0]
    if not errors:
        raise DialError(f"no address of node {expected} is known", reason="no_address")
    raise max(errors, key=lambda error: (error.refused, error.reason == "closed_at_once"))
