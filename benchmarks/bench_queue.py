"""A deep queue on a real node: 100,000 tasks that wait for a node that is not there, against 100.

* tasks (``/bin/true``) finished a second meanwhile, in batches of 100, on a node with the one and on one with
  the other queue;
* resident memory for each task that waits, against 1 KiB;
* seconds from the start to READY with the deep queue, against 3 s.

The last two have a bound, not a peer: it is the other side, and the ratio says how much of it is used.
"""

import json
import tempfile
from pathlib import Path

from _load import rate, request
from _nodes import Fleet, resident_mb
from _rounds import compare, options, show

TASK = {"name": "bench", "service": [{"driver": "native", "argv": ["/bin/true"]}]}
WAITING = {**TASK, "placement": {"constraints": ["name == nobody"]}}
BATCH = 100
FILL = 500
"""Tasks in each request that fills the queue."""
SHALLOW = 100
KIB = 1024.0
START_S = 3.0


def post(token: str, body: object, **headers: str) -> bytes:
    """One submission."""
    return request(
        "POST", "/api/v1/tasks", json.dumps(body).encode(), Authorization=f"Bearer {token}", **headers
    )


def main() -> int:
    """Measure all of it."""
    parser = options(__doc__)
    parser.add_argument("--deep", type=int, default=100_000, help="tasks in the deep queue (default 100,000)")
    parser.add_argument("--tasks", type=int, default=400, help="finished in each turn (default 400)")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="edgeorch-bench-") as folder,
        Fleet(Path(folder) / "deep", "deep", first=1) as one,
        Fleet(Path(folder) / "shallow", "shallow", first=9) as other,
    ):
        # By default one token may not have more than the 100,000 that wait.
        one.nodes[0].environment["EDGEORCH_POLICY_MAX_TASKS"] = str(2 * given.deep)
        (deep,), (shallow,) = one.start(), other.start()

        def finished(fleet: Fleet) -> float:
            batch = post(fleet.token, [TASK] * BATCH, Prefer="wait=30")
            return rate(fleet.nodes[0].address, batch, max(given.tasks // BATCH, 2), 2) * BATCH

        for fleet in (one, other):
            finished(fleet)  # what the first tasks bring into memory is none of the queue's
        before = resident_mb(deep.process.pid)
        rate(deep.address, post(one.token, [WAITING] * FILL), given.deep // FILL, 2)
        each = (resident_mb(deep.process.pid) - before) * 1e6 / given.deep
        rate(shallow.address, post(other.token, [WAITING] * SHALLOW), 1, 1)
        rows = [
            compare(
                f"tasks finished with {given.deep:,} queued",
                "/s",
                lambda: finished(one),
                f"{SHALLOW} queued",
                lambda: finished(other),
                goal=">= 0.9",
                rounds=given.rounds,
            ),
            compare(
                "memory of a queued task",
                "B",
                lambda: each,
                "1 KiB",
                lambda: KIB,
                goal="<= 1",
                rounds=1,
            ),
        ]

        def restarted() -> float:
            deep.stop()
            return deep.start()

        rows.append(
            compare(
                f"start to READY with {given.deep:,} queued",
                "s",
                restarted,
                f"{START_S:g} s",
                lambda: START_S,
                goal="<= 1",
                rounds=min(given.rounds, 3),
            )
        )
    return show(rows, given)


if __name__ == "__main__":
    raise SystemExit(main())
