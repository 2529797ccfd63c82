"""Choosing a node: what it costs in fleets of 10 to 100,000, against one of 64 that is looked at whole.

Before each choice a new sample of one of the nodes is heard, which in a fleet of 1,000 is about what comes in
while a node places tasks as fast as it can.
"""

import random
import time

import msgspec
import trio
from _rounds import compare, options, show, within

from edgeorch.config import Log, Scoring
from edgeorch.config import Membership as Times
from edgeorch.dispatch.books import Books
from edgeorch.dispatch.entry import Entry
from edgeorch.dispatch.queue import shape_of
from edgeorch.dispatch.view import View
from edgeorch.logs import set_up
from edgeorch.membership.table import Table
from edgeorch.model import Caller, NativeService, NodeInfo, Sample, Task, TaskSpec, TaskState
from edgeorch.seams import Seams

TURNS = 1_000
WARM = 300
"""Turns before: a node has seen most of its peers before it is in a hurry."""
SIZES = (10, 1_000, 10_000, 100_000)
P99_US = 50.0
SPEC = TaskSpec(name="x", service=(NativeService(argv=("true",)),))


def _info(number: int) -> NodeInfo:
    return NodeInfo(
        id=f"n{number:09}", name=f"n{number}", fleet="bench", version="0", cpus=4, drivers={"native": ""}
    )


def _sample(rng: random.Random) -> Sample:
    return Sample(
        at=0.0,
        cpu_busy=rng.random(),
        cpu_mhz=2000.0,
        cpus=4,
        load1=1.0,
        memory_total=1 << 33,
        memory_available=1 << 32,
        disk_free=1 << 34,
        slots=8,
        slots_used=0,
    )


class _Me:
    info = _info(0)
    measured = _sample(random.Random(0))

    def sample(self) -> Sample:
        return msgspec.structs.replace(self.measured, slots_used=0)


class World:
    """A node that has so many peers, and a task.

    Args:
        count: peers, each of them alive and measured.
    """

    def __init__(self, count: int) -> None:
        self.rng = random.Random(count)
        self.table = Table(_Me.info.id, Times(), 64, Seams())
        for number in range(1, count + 1):
            self.table.heard(_info(number), _sample(self.rng), trio.current_time())
        self.ids = list(self.table.snapshot())
        self.view = View(_Me(), self.table, Books(), Scoring(), Seams())  # type: ignore[arg-type]
        task = Task(
            id="t",
            name="x",
            state=TaskState.WAITING,
            origin="n",
            created_at=0.0,
            spec=msgspec.json.encode(SPEC),
            caller=Caller(token="t", role="submit"),
        )
        self.entry = Entry(task=task, shape=shape_of(SPEC), deadline=0.0, saved=task)

    def hear(self) -> None:
        """Another sample of one of the peers."""
        self.table.sampled(self.rng.choice(self.ids), _sample(self.rng), trio.current_time())

    def choose(self) -> None:
        """Find a node for the task."""
        if self.view.best(self.entry) is None:
            raise SystemExit("no node was found")


def microseconds(count: int, share: float) -> float:
    """What choosing a node of a fleet of this size takes at most in this share of all turns."""

    async def measure() -> list[float]:
        world, found = World(count), []
        for _ in range(WARM + TURNS):
            world.hear()
            begun = time.perf_counter()
            world.choose()
            found.append((time.perf_counter() - begun) * 1e6)
        return found[WARM:]

    return sorted(trio.run(measure))[int(TURNS * share)]


def main() -> int:
    """Measure all sizes."""
    given = options(__doc__).parse_args()
    set_up(Log(level="error"))
    rows = [
        compare(
            f"choosing one of {size:,} nodes",
            "us",
            lambda size=size: microseconds(size, 0.5),
            "one of 64",
            lambda: microseconds(63, 0.5),
            goal="<= 1.5" if size <= 1_000 else "",
            rounds=given.rounds,
        )
        for size in SIZES
    ]
    slowest = [microseconds(1_000, 0.99) for _ in range(given.rounds)]
    rows.append(within("p99 of choosing one of 1,000 nodes", "us", slowest, P99_US))
    return show(rows, given)


if __name__ == "__main__":
    raise SystemExit(main())
