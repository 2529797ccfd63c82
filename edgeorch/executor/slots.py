"""How much this node runs at once. A reservation is a ``with`` block: leaving it gives everything back."""

from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from edgeorch.model import Resources


class Load(NamedTuple):
    """What the executor adds to a sample: slots, slots in use, CPUs and memory promised."""

    slots: int
    used: int
    cpus: float
    memory: int


class Reservation:
    """One slot and the resources promised with it; released once, however often it is asked."""

    def __init__(self, slots: "Slots", resources: Resources) -> None:
        self._slots = slots
        self.resources = resources
        self._held = True
        slots._take(self)  # noqa: SLF001  the two classes are one thing

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        if self._held:
            self._held = False
            self._slots._give(self)  # noqa: SLF001  see above


class Slots:
    """The node's slots and what has been promised to attempts that hold one.

    Attributes:
        on_free: called when one was given back.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.on_free: Callable[[], None] = lambda: None
        self._held: set[Reservation] = set()
        self._load: Load | None = None
        """Until the next change: it goes with each word to a peer."""

    @property
    def used(self) -> int:
        """Slots in use; may exceed ``total`` when a restart adopts more than a new limit allows."""
        return len(self._held)

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return self.used >= self.total

    def reserve(self, resources: Resources) -> Reservation:
        """Take a slot, even over the limit: adopting must not fail. Ask ``full`` first where it matters."""
        return Reservation(self, resources)

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

    def _take(self, reservation: Reservation) -> None:
        self._held.add(reservation)
        self._load = None

    def _give(self, reservation: Reservation) -> None:
        self._held.discard(reservation)
        self._load = None
        self.on_free()
