"""Group commit against one commit per request: accepted tasks (row and event) made durable, 64 in flight."""

import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import trio
from _rounds import compare, options, show

from edgeorch.config import Log
from edgeorch.logs import set_up
from edgeorch.model import Caller, Event, Task, TaskState, ulid
from edgeorch.store import PutEvent, PutTask, TaskChange
from edgeorch.store.sqlite import SqliteStore

SPEC = b'{"name": "resize", "service": [{"driver": "native", "argv": ["/usr/bin/resize", "in.jpg"]}]}'
RNG = random.Random(1)
IN_FLIGHT = (1, 8, 64)


def change() -> list[TaskChange]:
    """What accepting a task writes."""
    task_id = ulid(time.time(), RNG.getrandbits(80), "0123456789")
    task = Task(
        id=task_id,
        name="resize",
        state=TaskState.WAITING,
        origin="0123456789",
        caller=Caller(token="laptop", role="submit"),
        created_at=time.time(),
        spec=SPEC,
    )
    event = Event(task=task_id, at=time.time(), type="state", data={"state": "waiting"})
    return [PutTask(task=task), PutEvent(event=event)]


async def _load(folder: str, calls: int, in_flight: int, *, alone: bool) -> float:
    """Commits a second; ``alone``: nobody may share a transaction."""
    store = SqliteStore(Path(folder) / "edgeorch.db")
    waiting = [change() for _ in range(calls)]
    lock = trio.Lock()

    async def one_by_one(changes: Sequence[TaskChange]) -> object:
        async with lock:
            return await store.commit(changes)

    commit: Callable[[Sequence[TaskChange]], Awaitable[object]] = one_by_one if alone else store.commit

    async def caller() -> None:
        while waiting:
            await commit(waiting.pop())

    async with trio.open_nursery() as services:
        await services.start(store.serve)
        begun = time.perf_counter()
        async with trio.open_nursery() as callers:
            for _ in range(in_flight):
                callers.start_soon(caller)
        took = time.perf_counter() - begun
        services.cancel_scope.cancel()
    return calls / took


def rate(calls: int, in_flight: int, *, alone: bool) -> float:
    """Commits a second into a new database."""
    with tempfile.TemporaryDirectory(prefix="edgeorch-bench-") as folder:
        return trio.run(partial(_load, folder, calls, in_flight, alone=alone))


def main() -> int:
    """Measure at 1, 8 and 64 in flight."""
    parser = options(__doc__)
    parser.add_argument("--calls", type=int, default=2000, help="in each turn (default 2000)")
    given = parser.parse_args()
    set_up(Log(level="error"))
    rows = [
        compare(
            f"durable accepts, {in_flight} in flight",
            "/s",
            partial(rate, given.calls, in_flight, alone=False),
            "one commit per request",
            partial(rate, given.calls, in_flight, alone=True),
            goal=">= 8" if in_flight == 64 else "",
            rounds=given.rounds,
        )
        for in_flight in IN_FLIGHT
    ]
    return show(rows, given)


if __name__ == "__main__":
    raise SystemExit(main())
