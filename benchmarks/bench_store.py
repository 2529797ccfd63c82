"""Group commit against one commit per request, interleaved in one run.

``python benchmarks/bench_store.py [--json] [--rounds 5] [--calls 2000]`` prints rates and latencies at 1, 8
and 64 calls in flight, and the ratio of the two rates at 64. A call is one accepted task: task and event.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import trio

from edgeorch.model import Caller, Event, Task, TaskState, new_task_id
from edgeorch.store import PutEvent, PutTask
from edgeorch.store.sqlite import SqliteStore

SPEC = b'{"name": "resize", "service": [{"driver": "native", "argv": ["/usr/bin/resize", "in.jpg"]}]}'
RNG = random.Random(1)


def change():
    task_id = new_task_id(time.time(), RNG, "0123456789")
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


async def load(commit, calls, in_flight):
    """Commit ``calls`` times with ``in_flight`` callers; (calls per second, p50 and p99 in ms)."""
    times = []
    waiting = [change() for _ in range(calls)]

    async def caller():
        while waiting:
            begun = time.perf_counter()
            await commit(waiting.pop())
            times.append((time.perf_counter() - begun) * 1000)

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(in_flight):
            nursery.start_soon(caller)
    rate = len(times) / (time.perf_counter() - begun)
    cuts = statistics.quantiles(times, n=100)
    return rate, cuts[49], cuts[98]


async def measure(rounds, calls):
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        async with trio.open_nursery() as nursery:
            stores = [SqliteStore(Path(folder) / f"{n}" / "edgeorch.db") for n in range(2)]
            for store in stores:
                await nursery.start(store.serve)
            alone = trio.Lock()

            async def one_by_one(changes):
                # The same store and thread, but nobody may share a transaction.
                async with alone:
                    await stores[1].commit(changes)

            ways = {"group": stores[0].commit, "each": one_by_one}
            for _ in range(rounds):
                for in_flight in (1, 8, 64):
                    for name, commit in ways.items():
                        result = await load(commit, calls, in_flight)
                        found.setdefault(f"{name}_{in_flight}", []).append(result)
            nursery.cancel_scope.cancel()
    return {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in found.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    found = trio.run(partial(measure, options.rounds, options.calls))
    ratio = found["group_64"][0] / found["each_64"][0]
    if options.json:
        rows = {
            name: dict(zip(("per_s", "p50_ms", "p99_ms"), row, strict=True)) for name, row in found.items()
        }
        print(json.dumps({"ratio_at_64": ratio, **rows}))
        return
    for name, (rate, p50, p99) in found.items():
        print(f"{name:10} {rate:10,.0f} /s   p50 {p50:7.2f} ms   p99 {p99:7.2f} ms")
    print(f"group commit at 64 in flight: {ratio:.1f} x one commit per request")


main()
