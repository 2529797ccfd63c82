"""A task (``/bin/true``) that another node runs, against the same task run by the node that was asked.

Two real nodes on loopback with mutual TLS; both sides are POSTs to the same node, pinned by name.
"""

import json
import statistics
import tempfile
from pathlib import Path

from _load import request, times
from _nodes import Fleet
from _rounds import compare, options, show

TASK = {"name": "bench", "service": [{"driver": "native", "argv": ["/bin/true"]}]}


def main() -> int:
    """Measure one task at a time."""
    parser = options(__doc__)
    parser.add_argument("--tasks", type=int, default=100, help="in each turn (default 100)")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="edgeorch-bench-") as folder,
        Fleet(Path(folder), "here", "there") as fleet,
    ):
        here, there = fleet.start()

        def p50_ms(node: str) -> float:
            headers = {"Authorization": f"Bearer {fleet.token}", "Prefer": "wait=30"}
            body = json.dumps({**TASK, "placement": {"node": node}}).encode()
            what = request("POST", "/api/v1/tasks", body, **headers)
            return statistics.median(times(here.address, what, given.tasks)) * 1e3

        row = compare(
            "POST of a task until another node has finished it, one at a time, p50",
            "ms",
            lambda: p50_ms(there.name),
            "run by the node that was asked",
            lambda: p50_ms(here.name),
            goal="<= 1.5",
            rounds=given.rounds,
        )
    return show([row], given)


if __name__ == "__main__":
    raise SystemExit(main())
