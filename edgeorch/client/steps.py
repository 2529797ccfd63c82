"""The language between what the client does and who carries it out.

An operation is a generator without I/O: it yields one of the steps below and gets back what the step brought;
where the node does not answer, ``NodeUnreachableError`` is thrown in instead. The client on Trio and the one
on plain sockets differ only in how they carry a step out.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One request, answered by a ``Reply``; ``wait_s`` is how long the node may take on purpose."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    wait_s: float = 0.0


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Open:
    """Begin to read the answer to this call piece by piece; another open answer is closed. Brings nothing."""

    call: Call


@dataclass(frozen=True)
class Read:
    """Brings the next bytes of the open answer, empty at its end."""


@dataclass(frozen=True)
class Pause:
    """Wait this long. Brings nothing."""

    seconds: float


@dataclass(frozen=True)
class Emit:
    """Hand this to the caller. Brings nothing."""

    item: Any


Step: TypeAlias = Call | Open | Read | Pause | Emit
Steps: TypeAlias = Generator[Step, Any, T]


def emitting_result(steps: Steps[T]) -> Steps[None]:
    """The same steps, with the result as the last item."""
    result = yield from steps
    yield Emit(result)
