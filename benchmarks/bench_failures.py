"""How soon a peer that fails is chosen no more, and whether one that works is ever taken for failed.

* killed: from SIGKILL until a dry run at another node does not offer it;
* frozen: the same from SIGSTOP;
* overload: twice as many busy processes as CPUs beside the nodes; every "node is suspect" and "node is dead"
  in their logs is false. ``--overload 600`` takes the ten minutes of the goal, the default is a short form.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _load import request, response
from _nodes import Fleet
from _rounds import options, show, within

ASK = {"name": "bench", "service": [{"driver": "native", "argv": ["/bin/true"]}]}
KILLED_MS, FROZEN_MS = 50.0, 3000.0
PATIENCE_S = 30.0
FALSE = re.compile(rb"node is (?:suspect|dead)")


def chosen(node, other):
    """Whether a dry run at ``node`` would place a task on ``other`` (or give it as the next best)."""
    headers = {"Authorization": f"Bearer {node.fleet.token}"}
    what = request("POST", "/api/v1/tasks?dry_run=true", json.dumps(ASK).encode(), **headers)
    ranking = json.loads(response(node.address, what))["ranking"]
    return any(line["node_name"] == other.name and not line["refusal"] for line in ranking)


def until_chosen(node, other, wanted):
    """Milliseconds until a dry run says so."""
    begun = time.perf_counter()
    while chosen(node, other) is not wanted:
        if time.perf_counter() - begun > PATIENCE_S:
            raise SystemExit(f"{node.name} sees {node.states()} for {PATIENCE_S:g} s")
    return (time.perf_counter() - begun) * 1e3


def killed_ms(here, other):
    """One SIGKILL; the node is started again, with its runner, and seen again."""
    runner = other.runner()
    other.process.kill()
    took = until_chosen(here, other, wanted=False)
    other.process.wait()
    os.kill(runner, signal.SIGKILL)
    other.start()
    until_chosen(here, other, wanted=True)
    return took


def frozen_ms(here, other):
    """One SIGSTOP."""
    other.process.send_signal(signal.SIGSTOP)
    try:
        return until_chosen(here, other, wanted=False)
    finally:
        other.process.send_signal(signal.SIGCONT)
        until_chosen(here, other, wanted=True)


def false_suspicions(nodes, seconds):
    """How often a node takes another for failed while twice as many processes as CPUs never rest."""
    before = [len(FALSE.findall((node.folder / "log").read_bytes())) for node in nodes]
    with contextlib.ExitStack() as stack:
        for _ in range(2 * (os.cpu_count() or 1)):
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        time.sleep(seconds)
    after = [len(FALSE.findall((node.folder / "log").read_bytes())) for node in nodes]
    return sum(after) - sum(before)


def main() -> int:
    """Measure all of it."""
    parser = options(__doc__)
    parser.add_argument(
        "--overload", type=float, default=20.0, help="seconds (default 20; the goal says 600)"
    )
    parser.add_argument("--only", choices=("failures", "overload"), help="a part of it")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # tidy up then, too
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="edgeorch-bench-") as folder,
        Fleet(Path(folder), *"abcd") as fleet,
    ):
        here, other, *_ = nodes = fleet.start()
        if given.only != "overload":
            killed = [killed_ms(here, other) for _ in range(given.rounds)]
            frozen = [frozen_ms(here, other) for _ in range(given.rounds)]
            rows.append(within("killed node: until it is chosen no more", "ms", killed, KILLED_MS))
            rows.append(within("frozen node: until it is chosen no more", "ms", frozen, FROZEN_MS))
        if given.only != "failures":
            what = f"nodes taken for failed in {given.overload:g} s at 2 x CPU overload, {len(nodes)} nodes"
            rows.append(within(what, "", [false_suspicions(nodes, given.overload)], 0))
    return show(rows, given)


if __name__ == "__main__":
    raise SystemExit(main())
