"""What a node's control traffic and CPU come to while nothing is asked: 30 real nodes against 10.

Up to 64 peers every node asks every other, so both grow with the fleet here; ``bench_large_fleet.py`` has the
goals, from 100 nodes on. Bytes are those of the frames, before TLS.
"""

import contextlib
import statistics
import tempfile
import time
from pathlib import Path

from _nodes import Fleet, cpu_s
from _rounds import options, row, show
from prometheus_client.parser import text_string_to_metric_families

SETTLE_S = 3.0
COUNTS = ("calls", "served", "sent_bytes", "received_bytes")


def numbers(node):
    """What this node has sent and received by now: (messages, bytes, now)."""
    with contextlib.closing(node.connect()) as connection:
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {node.fleet.token}"})
        text = connection.getresponse().read().decode()
    found = {family.name: family.samples for family in text_string_to_metric_families(text)}
    calls, served, sent, received = (found[f"edgeorch_wire_{name}"][0].value for name in COUNTS)
    return 2 * (calls + served), sent + received, time.perf_counter()


def measure(count, windows, seconds):
    """A list per window of (messages, bytes, CPU milliseconds) of a node in a second, mean of the fleet."""
    names = [f"node{number}" for number in range(count)]
    with (
        tempfile.TemporaryDirectory(prefix="edgeorch-bench-") as folder,
        Fleet(Path(folder), *names) as fleet,
    ):
        nodes = fleet.start()
        time.sleep(SETTLE_S)
        found = []
        for _ in range(windows):
            before = [numbers(node) for node in nodes]
            # Without what it costs to ask for the numbers.
            used, begun = [cpu_s(node.process.pid) for node in nodes], time.perf_counter()
            time.sleep(seconds)
            took = time.perf_counter() - begun
            used = [cpu_s(node.process.pid) - cpu for node, cpu in zip(nodes, used, strict=True)]
            after = [numbers(node) for node in nodes]
            pairs = list(zip(after, before, strict=True))
            messages, sizes = (
                statistics.mean((a[i] - b[i]) / (a[2] - b[2]) for a, b in pairs) for i in (0, 1)
            )
            found.append((messages, sizes, statistics.mean(used) / took * 1e3))
    return found


def main() -> int:
    """Measure both fleets."""
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round (default 4)")
    given = parser.parse_args()
    small, large = (measure(count, given.rounds, given.seconds) for count in (10, 30))
    what = ("messages of an idle node, both ways", "/s"), ("bytes of them", "/s"), ("its CPU time", "ms/s")
    rows = [
        row(
            f"{name}, 30 nodes",
            unit,
            [figures[which] for figures in large],
            "10 nodes",
            [figures[which] for figures in small],
        )
        for which, (name, unit) in enumerate(what)
    ]
    return show(rows, given)


if __name__ == "__main__":
    raise SystemExit(main())
