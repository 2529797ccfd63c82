"""What a node costs when nothing is asked of it.

* memory against a Python process that has imported the same modules, less edgeorch's own;
* CPU time with its runner's: with two other nodes, and with 64 peers. These 64 share one process: real keys,
  links and failure detectors without the rest of a node.
"""

import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from _nodes import Fleet, precise_cpu_s, resident_mb
from _rounds import compare, options, show, within

SETTLE_S = 5.0
PEERS = 64
CROWD = Path(__file__).with_name("_crowd.py")
IMPORTED = re.compile(r"^import time: +\d+ \| +\d+ \| +([\w.]+)$", re.MULTILINE)
IMPORT = """
import importlib, sys
for name in sys.stdin.readline().split():
    try:
        importlib.import_module(name)
    except ImportError:
        pass
print("imported", flush=True)
sys.stdin.read()
"""


def imported_by(node):
    """The modules that a node has imported by the time that it is ready, without edgeorch's."""
    node.environment = {"PYTHONPROFILEIMPORTTIME": "1"}
    node.start()
    node.stop()
    node.environment = {}
    names = dict.fromkeys(IMPORTED.findall((node.folder / "log").read_text()))
    return [name for name in names if name.partition(".")[0] not in ("edgeorch", "__main__")]


def bare_mb(modules):
    """Memory of a process that has imported them."""
    with subprocess.Popen(
        [sys.executable, "-c", IMPORT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdin.write(" ".join(modules) + "\n")
        process.stdin.flush()
        process.stdout.readline()
        found = resident_mb(process.pid)
        process.stdin.close()
    return found


def cpu_percent(node, rounds, seconds):
    """Percent of a core that the node and its runner use, per round."""
    pids, found = (node.process.pid, node.runner()), []
    for _ in range(rounds):
        before, begun = sum(map(precise_cpu_s, pids)), time.perf_counter()
        time.sleep(seconds)
        found.append((sum(map(precise_cpu_s, pids)) - before) / (time.perf_counter() - begun) * 100)
    return found


@contextmanager
def crowd(fleet, node, count):
    """So many peers of this node."""
    folders = []
    for number in range(count):
        folders.append(fleet.folder / f"peer{number}")
        fleet.authority.issue(f"peer{number}", ["127.0.0.1"]).write(folders[-1])
    with subprocess.Popen(
        [sys.executable, CROWD, f"{node.host}:{fleet.wire}", *folders],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            if process.stdout.readline() != "linked\n":
                raise SystemExit("the peers of the crowd did not come up")
            yield
        finally:
            process.stdin.close()


def main() -> int:
    """Measure all of it."""
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round (default 4)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeorch-bench-") as name:
        with Fleet(Path(name) / "three", *"abc") as fleet:
            modules = imported_by(fleet.nodes[0])
            node, *_ = fleet.start()
            time.sleep(SETTLE_S)
            memory = compare(
                "memory of an idle node with two peers",
                "MB",
                lambda: resident_mb(node.process.pid),
                f"Python that has imported the same {len(modules)} modules",
                lambda: bare_mb(modules),
                goal="<= 1.25",
                rounds=given.rounds,
            )
            two = cpu_percent(node, given.rounds, given.seconds)
        with Fleet(Path(name) / "crowd", "alone", first=9) as fleet:
            (node,) = fleet.start()
            with crowd(fleet, node, PEERS):
                time.sleep(SETTLE_S)
                many = cpu_percent(node, given.rounds, given.seconds)
    rows = [
        memory,
        within("CPU of an idle node and its runner, two peers", "% of a core", two, 0.5),
        within(f"CPU of an idle node and its runner, {PEERS} peers", "% of a core", many, 3.0),
    ]
    return show(rows, given)


if __name__ == "__main__":
    raise SystemExit(main())
