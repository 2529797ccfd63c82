"""What it costs to hand in a task, against the same stack without us.

* POST of a task until its durable 202 (token, validation, fsync), one at a time, against a POST that does
  nothing in stock Quart-Trio on Hypercorn;
* the same application that does nothing on our server and on Hypercorn as it comes, 64 clients.

The tasks wait for a node that is not there, so that only accepting is measured.
"""

import json
import statistics
import tempfile
from pathlib import Path

from _load import rate, request, times
from _nodes import Fleet
from _peers import Peer
from _rounds import compare, options, show

TASK = {"name": "bench", "service": [{"driver": "native", "argv": ["/bin/true"]}]}
WAITING = TASK | {"placement": {"constraints": ["labels.none == here"]}}


def main() -> int:
    """Measure all of it."""
    parser = options(__doc__)
    parser.add_argument("--requests", type=int, default=300, help="in each turn (default 300)")
    given = parser.parse_args()
    noop = request("POST", "/tasks", json.dumps(TASK).encode())
    with (
        tempfile.TemporaryDirectory(prefix="edgeorch-bench-") as folder,
        Fleet(Path(folder), "alone") as fleet,
        Peer("stock") as stock,
        Peer("ours") as ours,
    ):
        (node,) = fleet.start()
        submit = request(
            "POST", "/api/v1/tasks", json.dumps(WAITING).encode(), Authorization=f"Bearer {fleet.token}"
        )
        rows = [
            compare(
                "POST of a task to its durable 202, one at a time, p50",
                "ms",
                lambda: statistics.median(times(node.address, submit, given.requests)) * 1e3,
                "no-op POST in stock Quart-Trio on Hypercorn",
                lambda: statistics.median(times(stock.address, noop, given.requests)) * 1e3,
                goal="<= 1.0",
                rounds=given.rounds,
            ),
            compare(
                "no-op POST in Quart, 64 clients",
                "/s",
                lambda: rate(ours.address, noop, given.requests * 5, 64),
                "stock Hypercorn",
                lambda: rate(stock.address, noop, given.requests * 5, 64),
                goal=">= 3",
                rounds=given.rounds,
            ),
        ]
    return show(rows, given)


if __name__ == "__main__":
    raise SystemExit(main())
