"""Choosing a node: what it costs in fleets of 10 to 100,000, against one of 64 that is looked at whole."""

import random
import time
from typing import Any

import msgspec
import trio
from _rounds import compare, options, show

from edgeorch.config import Scoring
from edgeorch.dispatch.books import Books
from edgeorch.dispatch.entry import Entry
from edgeorch.dispatch.view import View
from edgeorch.model import Caller, NativeService, NodeInfo, Peer, PeerState, Sample, Task, TaskSpec, TaskState
from edgeorch.seams import Seams

TURNS = 200
SIZES = (10, 1_000, 10_000, 100_000)


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

    def sample(self) -> Sample:
        return _sample(random.Random(0))


class _Membership:
    def __init__(self, count: int) -> None:
        rng = random.Random(count)
        infos = [_info(number) for number in range(1, count + 1)]
        self._peers = {
            info.id: Peer(info=info, state=PeerState.ALIVE, since=0.0, sample=_sample(rng)) for info in infos
        }

    def snapshot(self) -> dict[str, Peer]:
        return self._peers


def view_of(count: int) -> View:
    """What a node sees that has so many peers."""
    return View(_Me(), _Membership(count), Books(), Scoring(), Seams(rng=random.Random(1)))  # type: ignore[arg-type]


def microseconds(count: int) -> float:
    """The median of choosing a node of a fleet of this size."""
    view = view_of(count)
    spec = TaskSpec(name="x", service=(NativeService(argv=("true",)),))
    about: dict[str, Any] = {"state": TaskState.WAITING, "origin": "n", "created_at": 0.0}
    task = Task(
        id="t", name="x", spec=msgspec.json.encode(spec), caller=Caller(token="t", role="submit"), **about
    )
    entry = Entry(task=task, shape="", deadline=0.0, saved=task)

    async def measure() -> list[float]:
        found = []
        for _ in range(TURNS):
            begun = time.perf_counter()
            view.best(entry)
            found.append((time.perf_counter() - begun) * 1e6)
        return found

    return sorted(trio.run(measure))[TURNS // 2]


def main() -> int:
    """Measure all sizes."""
    given = options(__doc__).parse_args()
    rows = [
        compare(
            f"choosing one of {size:,} nodes",
            "us",
            lambda size=size: microseconds(size),
            "one of 64",
            lambda: microseconds(63),
            goal="<= 1.5" if size <= 1_000 else "",
            rounds=given.rounds,
        )
        for size in SIZES
    ]
    return show(rows, given)


if __name__ == "__main__":
    raise SystemExit(main())
