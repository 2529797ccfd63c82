"""Whole tasks (``/bin/true``), handed in over REST and run by the node's runner, as the product is shipped.

* POST until it has finished, one at a time, against bare ASGI on Hypercorn that only starts ``/bin/true``;
* tasks a second, 64 clients and batches of 100, against ``xargs -P2`` that starts as many.
"""

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from _load import rate, request, times
from _nodes import Fleet
from _peers import Peer
from _rounds import compare, options, show

TASK = {"name": "bench", "service": [{"driver": "native", "argv": ["/bin/true"]}]}
BATCH = 100
CLIENTS = 64


def xargs(count: int) -> float:
    """Children a second that ``xargs -P2`` starts and waits for."""
    begun = time.perf_counter()
    subprocess.run(["xargs", "-P2", "-I{}", "/bin/true"], input=b"x\n" * count, check=True)
    return count / (time.perf_counter() - begun)


def main() -> int:
    """Measure all of it."""
    parser = options(__doc__)
    parser.add_argument("--tasks", type=int, default=400, help="in each turn (default 400)")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="edgeorch-bench-") as folder,
        Fleet(Path(folder), "alone") as fleet,
        Peer("spawn") as spawn,
    ):
        (node,) = fleet.start()

        def post(body: object) -> bytes:
            headers = {"Authorization": f"Bearer {fleet.token}", "Prefer": "wait=30"}
            return request("POST", "/api/v1/tasks", json.dumps(body).encode(), **headers)

        one, batch, bare = post(TASK), post([TASK] * BATCH), request("POST", "/", b"{}")
        batches = max(given.tasks // BATCH, 2)
        rows = [
            compare(
                "POST of a task until it has finished, one at a time, p50",
                "ms",
                lambda: statistics.median(times(node.address, one, given.tasks // 4)) * 1e3,
                "bare ASGI on Hypercorn that only starts it",
                lambda: statistics.median(times(spawn.address, bare, given.tasks // 4)) * 1e3,
                goal="<= 2.0",
                rounds=given.rounds,
            ),
            compare(
                f"tasks finished, single POSTs, {CLIENTS} clients",
                "/s",
                lambda: rate(node.address, one, given.tasks, CLIENTS),
                "xargs -P2",
                lambda: xargs(given.tasks),
                goal=">= 0.60",
                rounds=given.rounds,
            ),
            compare(
                f"tasks finished, batches of {BATCH}",
                "/s",
                lambda: rate(node.address, batch, batches, 2) * BATCH,
                "xargs -P2",
                lambda: xargs(given.tasks),
                goal=">= 0.90",
                rounds=given.rounds,
            ),
        ]
    return show(rows, given)


if __name__ == "__main__":
    raise SystemExit(main())
