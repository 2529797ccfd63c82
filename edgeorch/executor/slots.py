"""How much this node runs at once. A reservation is a ``with`` block: leaving it gives everything back.

An attempt has to be on the disk before it may start, and where services take a millisecond that takes longer
than they do. So where slots are given back that fast, those that will be free by then are given away already:
such an attempt waits for its turn at its driver, which starts it the moment that another one is over. Never
does more run than there are slots.
"""

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

import trio

from edgeorch.model import Resources

SOON_S = 0.1
"""Slots that are expected to be free after this long may be given away now."""
MOST_SOON = 64
SEEN = 10
"""Slots given back, of which it is known when."""


class Load(NamedTuple):
    """What the executor adds to a sample: slots, slots in use, CPUs and memory promised."""

    slots: int
    used: int
    cpus: float
    memory: int


class Reservation:
    """One slot and the resources promised with it; released once, however often it is asked."""

    def __init__(self, slots: "Slots", resources: Resources, driver: str) -> None:
        self._slots = slots
        self.resources = resources
        self.driver = driver
        self._held = True
        self._begun = False
        """Whether its attempt runs, or will as soon as it has its turn."""
        self._runs = False
        """Whether it counts as in use."""
        slots._hold(self)  # noqa: SLF001  the two classes are one thing

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def run(self) -> None:
        """Take the slot into use now, even over the limit: adopting must not fail."""
        if self._held:
            self._begun = self._runs = True
            self._slots._begin()  # noqa: SLF001  see above

    def take(self) -> int | None:
        """Take the slot into use: now (None), or when it is free: once fewer of its driver than this run."""
        if not self._slots._busy:  # noqa: SLF001  see above
            self.run()
            return None
        self._begun = True
        return self._slots._join(self)  # noqa: SLF001  see above

    def withdraw(self) -> None:
        """Give it back unused."""
        self._begun = False
        self.release()

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        if self._held:
            self._held = False
            self._slots._give(self, begun=self._begun, ran=self._runs)  # noqa: SLF001  see above


class Slots:
    """The node's slots and what has been promised to attempts that hold one.

    Attributes:
        on_free: called when one was given back.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.on_free: Callable[[], None] = lambda: None
        self._held: set[Reservation] = set()
        self._running = 0
        self._line: deque[Reservation] = deque()
        """Those who wait for their turn at their driver, which gives it to them in this order."""
        self._freed: deque[float] = deque(maxlen=SEEN)
        self._load: Load | None = None
        """Until the next change: it goes with each word to a peer."""

    @property
    def held(self) -> int:
        """Reservations: slots in use, and those that were given away before they are free."""
        return len(self._held)

    @property
    def used(self) -> int:
        """Slots in use; may exceed ``total`` when a restart adopts more than a new limit allows."""
        return max(self._running, min(self.held, self.total))

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return self.held >= self.total

    @property
    def full_for_long(self) -> bool:
        """Whether no slot is free, and none will be before an attempt that takes it is on the disk."""
        return self.full and self.held >= self.total + self._soon()

    def reserve(self, resources: Resources, driver: str = "") -> Reservation:
        """Hold a slot, even over the limit: adopting must not fail. Ask ``full`` first where it matters."""
        return Reservation(self, resources, driver)

    def load(self) -> Load:
        """The present load."""
        if self._load is None:
            self._load = Load(
                slots=self.total,
                used=self.used,
                cpus=sum(held.resources.cpus for held in self._held),
                memory=sum(held.resources.memory for held in self._held),
            )
        return self._load

    def _soon(self) -> int:
        """Slots that will be given back in a moment, if it goes on as it did."""
        if len(self._freed) < SEEN:
            return 0
        took_s = trio.current_time() - self._freed[0]
        return int(min((SEEN - 1) * SOON_S / took_s, MOST_SOON)) if took_s > 0 else MOST_SOON

    @property
    def _busy(self) -> bool:
        return self._running >= self.total

    def _begin(self) -> None:
        self._running += 1
        self._load = None

    def _join(self, reservation: Reservation) -> int:
        self._line.append(reservation)
        others = sum(held._runs and held.driver != reservation.driver for held in self._held)  # noqa: SLF001  see above
        return self.total - others

    def _hold(self, reservation: Reservation) -> None:
        self._held.add(reservation)
        self._load = None

    def _give(self, reservation: Reservation, *, begun: bool, ran: bool) -> None:
        self._held.discard(reservation)
        self._load = None
        if begun:
            self._freed.append(trio.current_time())
        if ran:
            self._running -= 1
            while self._line and not self._busy:
                self._line.popleft().run()
        elif reservation in self._line:
            # It is over before it was heard of the one whose slot it has got.
            self._line.remove(reservation)
        self.on_free()
