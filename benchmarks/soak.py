"""A node at 80 % of what it can do, for minutes: does anything grow, and do answers stay as quick?

``python benchmarks/soak.py [--minutes 10] [--share 0.8] [--json] [--write]``: the capacity is measured first,
in the same run (tasks that run ``/bin/true``, from 64 clients as fast as they are answered). Then tasks come
at a share of that rate whether or not earlier ones are finished, and their times count from when they were
due. The last third of the run is held against the first one.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from _load import offered, rate, request
from _nodes import Fleet, resident_mb
from _page import section, write

TASK = {"name": "soak", "service": [{"driver": "native", "argv": ["/bin/true"]}]}
CLIENTS = 64
CALIBRATE_S, WARM_UP_S, LOOK_EVERY_S = 10.0, 10.0, 1.0
FLAT = 1.05
"""Memory may be this much more in the last third: an allocator's noise, less than a leak of 1 KB a task."""
STABLE = 1.5
"""p99 of the last third against the first."""
SLOW_S = 0.5
"""Few tasks take as long; whether they come together tells a stall from a queue that is always there."""


@dataclass(frozen=True)
class Look:
    """What the node and its runner held at a moment."""

    at: float
    node_mb: float
    runner_mb: float
    descriptors: int
    threads: int

    @classmethod
    def at_node(cls, node, runner):
        """As of now."""
        pids = (node.process.pid, runner)
        return cls(
            at=time.perf_counter(),
            node_mb=resident_mb(node.process.pid),
            runner_mb=resident_mb(runner),
            descriptors=sum(_entries(f"/proc/{pid}/fd") for pid in pids),
            threads=sum(_entries(f"/proc/{pid}/task") for pid in pids),
        )


def _entries(folder):
    return sum(1 for _ in Path(folder).iterdir())


def capacity(node, what):
    """Tasks a second from as many clients as there will be."""
    rate(node.address, what, 200, CLIENTS)  # warms up
    begun, found = time.perf_counter(), []
    while time.perf_counter() - begun < CALIBRATE_S or len(found) < 3:
        found.append(rate(node.address, what, 400, CLIENTS))
    return statistics.median(found)


def watch(node, runner, looks, ended):
    """Look every second until the load has ended."""
    while not ended.wait(LOOK_EVERY_S):
        looks.append(Look.at_node(node, runner))


def run(minutes, share):
    """(figures, [(what, first third, last third, verdict)])."""
    with (
        tempfile.TemporaryDirectory(prefix="edgeorch-soak-") as folder,
        Fleet(Path(folder), "alone") as fleet,
    ):
        (node,) = fleet.start()
        headers = {"Authorization": f"Bearer {fleet.token}", "Prefer": "wait=30"}
        what = request("POST", "/api/v1/tasks", json.dumps(TASK).encode(), **headers)
        full, runner = capacity(node, what), node.runner()
        offered(node.address, what, full * share, WARM_UP_S, CLIENTS)
        looks, ended = [Look.at_node(node, runner)], threading.Event()
        watcher = threading.Thread(target=watch, args=(node, runner, looks, ended))
        watcher.start()
        begun = time.perf_counter()
        try:
            times = offered(node.address, what, full * share, minutes * 60, CLIENTS)
        finally:
            ended.set()
            watcher.join()
        took = time.perf_counter() - begun
    slow = [int(due - begun) for due, waited in times if waited > SLOW_S]
    figures = {
        "minutes": minutes,
        "capacity_per_s": full,
        "offered_per_s": full * share,
        "finished_per_s": len(times) / took,
        "tasks": len(times),
        "seconds": minutes * 60,
        "slow": len(slow),
        "slow_seconds": len(set(slow)),
        "load": os.getloadavg()[0],
    }
    return figures, compared(times, looks, begun, minutes * 20)


def compared(times, looks, begun, third_s):
    """Each figure in the first and in the last third, and whether that is flat."""
    ends = (begun + third_s, begun + 2 * third_s)

    def thirds(pairs):
        return (
            [value for at, value in pairs if at < ends[0]],
            [value for at, value in pairs if at >= ends[1]],
        )

    rows = []
    for what, name in (("node's memory, MB", "node_mb"), ("runner's memory, MB", "runner_mb")):
        first, last = map(statistics.median, thirds([(look.at, getattr(look, name)) for look in looks]))
        rows.append((what, first, last, last <= first * FLAT))
    for what, name in (("descriptors, most", "descriptors"), ("threads, most", "threads")):
        # What is in flight comes and goes; what leaks is still there when it is few.
        first, last = thirds([(look.at, getattr(look, name)) for look in looks])
        rows.append((what, max(first), max(last), min(last) <= max(first)))
    first, last = thirds([(due, took * 1e3) for due, took in times])
    for what, percent in (("p50, ms", 50), ("p99, ms", 99)):
        early, late = (statistics.quantiles(part, n=100)[percent - 1] for part in (first, last))
        rows.append((what, early, late, late <= early * STABLE))
    return rows


def report(figures, rows):
    """For people."""
    print(f"{figures['tasks']:,} tasks in {figures['minutes']:g} minutes; load {figures['load']:.1f}")
    rates = (f"{name} {figures[f'{name}_per_s']:.0f}" for name in ("capacity", "offered", "finished"))
    print(f"a second: {', '.join(rates)}")
    print(f"{figures['slow']:,} took over {SLOW_S:g} s; they were due in {figures['slow_seconds']} seconds")
    print(f"{'':<22}{'first third':>12}{'last third':>12}{'ratio':>8}")
    for what, first, last, good in rows:
        print(f"{what:<22}{first:>12.1f}{last:>12.1f}{last / first:>8.2f}  {'flat' if good else 'GROWS'}")
    grown = [what for what, *_, good in rows if not good]
    print(f"grows: {'; '.join(grown)}" if grown else "nothing grows")


def main():
    """The soak; exit code 1 where something grows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of load (default 10)")
    parser.add_argument("--share", type=float, default=0.8, help="of the capacity (default 0.8)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--write", action="store_true", help="write README.md and results.json")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # tidy up then, too
    figures, rows = run(given.minutes, given.share)
    if given.json:
        names = ("what", "first_third", "last_third", "flat")
        print(json.dumps({**figures, "rows": [dict(zip(names, row, strict=True)) for row in rows]}))
    else:
        report(figures, rows)
    if given.write:
        write("soak", section([], **figures, thirds=rows))
    return int(not all(good for *_, good in rows))


if __name__ == "__main__":
    raise SystemExit(main())
