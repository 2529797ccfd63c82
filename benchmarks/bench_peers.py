"""The same work on Celery, dask.distributed and Ray, in turns with a node as it is shipped.

``python benchmarks/bench_peers.py [--tasks 400] [--rounds 5] [--json] [--write] [NAME …]`` starts each of
them on loopback, runs ``/bin/true`` as a child process one at a time, 64 in flight and in batches of 100,
and stops them. What cannot be started is named with the reason and left out. ``--write`` replaces the
peers' part of ``benchmarks/README.md`` and ``benchmarks/results.json``. Only a ratio that misses its goal
is a failure.
"""

import argparse
import contextlib
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from _load import rate, request, times
from _nodes import REQUEST, Fleet
from _page import section, write
from _rounds import ROUNDS, Row, in_turns, line, row
from _systems import System, UnavailableError

TASK = {"name": "bench", "service": [{"driver": "native", "argv": ["/bin/true"]}]}
IN_FLIGHT = 64
BATCH = 100
SYSTEMS = {
    "celery": ("Celery on Redis", "celery", "no"),
    "durable": ("Celery on Redis with appendfsync always", "celery", "always"),
    "dask": ("dask.distributed", "dask"),
    "ray": ("Ray", "ray"),
}
"""Name to what it is called in a row, its script and that script's arguments."""
KINDS = {
    "single": ("POST of a task until it has finished, one at a time, p50", "ms"),
    "windowed": (f"tasks finished, single POSTs, {IN_FLIGHT} in flight", "/s"),
    "batch": (f"tasks finished, batches of {BATCH}, one after the other", "/s"),
}
GOALS = {
    ("single", "celery"): "<= 0.6",
    ("single", "ray"): "<= 0.9",
    ("windowed", "celery"): ">= 2",
    ("windowed", "dask"): ">= 2",
    ("windowed", "ray"): ">= 1.0",
}
ORIGINAL_REQUESTS, ORIGINAL_CLIENTS = 1000, 50
"""As the original was measured."""


class Edgeorch:
    """Our side.

    Args:
        fleet: of one node, which runs.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._address = fleet.nodes[0].address
        headers = {"Authorization": f"Bearer {fleet.token}"}
        tasks = {"Prefer": "wait=30", **headers}
        self._one = request("POST", "/api/v1/tasks", json.dumps(TASK).encode(), **tasks)
        self._batch = request("POST", "/api/v1/tasks", json.dumps([TASK] * BATCH).encode(), **tasks)
        path = "/api/v1/orchestration/services"
        self._original = request("POST", path, json.dumps(REQUEST).encode(), **headers)
        self.answered = 0

    def turn(self, kind: str, tasks: int) -> float:
        """Run so many tasks: median milliseconds, or tasks a second."""
        if kind == "batch":
            batches = max(tasks // BATCH, 1)
            self.answered += batches
            return rate(self._address, self._batch, batches, 1) * BATCH
        self.answered += tasks
        if kind == "single":
            return statistics.median(times(self._address, self._one, tasks)) * 1e3
        return rate(self._address, self._one, tasks, IN_FLIGHT)

    def original(self) -> dict[str, float]:
        """The original's request, as often and from as many clients as the original got it."""
        one_by_one = times(self._address, self._original, ORIGINAL_REQUESTS)
        crowd = rate(self._address, self._original, ORIGINAL_REQUESTS, ORIGINAL_CLIENTS)
        self.answered += 2 * ORIGINAL_REQUESTS
        return {
            "single_ms": statistics.median(one_by_one) * 1e3,
            "single": ORIGINAL_REQUESTS / sum(one_by_one),
            "crowd": crowd,
            "answered": self.answered,
        }


def start(
    names: list[str], folder: Path, stack: contextlib.ExitStack
) -> tuple[dict[str, System], dict[str, str]]:
    """Start what can be started: those that run, and why the others do not."""
    sides, left_out = {}, {}
    for name in names:
        title, script, *more = SYSTEMS[name]
        print(f"starting {title}", file=sys.stderr)
        try:
            sides[name] = stack.enter_context(System(script, folder / name, *more))
        except UnavailableError as error:
            left_out[title] = str(error)
            print(f"left out: {title}: {error}", file=sys.stderr)
    return sides, left_out


def compared(ours: Edgeorch, sides: dict[str, System], tasks: int, rounds: int) -> Iterator[Row]:
    """Every kind of work, all sides in turns."""
    for kind, (what, unit) in KINDS.items():
        turns = {name: partial(side.turn, kind, tasks) for name, side in sides.items()}
        found = in_turns({"edgeorch": partial(ours.turn, kind, tasks), **turns}, rounds)
        for name in sides:
            goal = GOALS.get((kind, name), "")
            yield row(what, unit, found["edgeorch"], SYSTEMS[name][0], found[name], goal=goal)


def main() -> int:
    """Measure all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SYSTEMS)} (default: all)")
    parser.add_argument("--tasks", type=int, default=400, help="in each turn (default 400)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each side (default {ROUNDS})")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--write", action="store_true", help="write README.md and results.json")
    given = parser.parse_args()
    if unknown := set(given.names) - set(SYSTEMS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(SYSTEMS)}")
    for number in (signal.SIGINT, signal.SIGTERM):  # so that what it started is stopped too
        signal.signal(number, lambda *_: sys.exit("stopped"))
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="edgeorch-", ignore_cleanup_errors=True) as folder,
        Fleet(Path(folder), "alone") as fleet,
        contextlib.ExitStack() as stack,
    ):
        fleet.start()
        ours = Edgeorch(fleet)
        sides, left_out = start(given.names or list(SYSTEMS), Path(folder), stack)
        versions = {name: text for side in sides.values() for name, text in side.versions.items()}
        print(", ".join(f"{name} {text}" for name, text in versions.items()), file=sys.stderr)
        for one in compared(ours, sides, given.tasks, given.rounds):
            rows.append(one)
            print(line(one), file=sys.stderr if given.json else sys.stdout, flush=True)
        original = ours.original()
    measured = section(
        rows, versions=versions, tasks=given.tasks * given.rounds, left_out=left_out, original=original
    )
    if given.json:
        print(json.dumps(measured))
    if given.write:
        write("peers", measured)
    missed = [f"{one.what} against {one.against}" for one in rows if not one.met]
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
