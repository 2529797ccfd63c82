"""dask.distributed, a scheduler and two worker processes: ``with_dask.py FOLDER``."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from _turns import Side, answers, beside, own_stdout, server, until

WORKERS = 2


def true(_number: int = 0) -> None:
    """The work."""
    subprocess.run(["/bin/true"], check=True)


def main(folder: str) -> None:
    """Serve."""
    out = own_stdout()
    import distributed

    known = Path(folder) / "scheduler.json"
    shared = ["--scheduler-file", str(known), "--no-dashboard", "--host", "127.0.0.1"]
    workers = ["--nworkers", str(WORKERS), "--nthreads", "1", "--local-directory", folder]
    with server(beside("dask"), "scheduler", *shared, "--port", "0") as scheduler:
        until("the scheduler of dask", known.exists, scheduler)
        with (
            server(beside("dask"), "worker", *shared, *workers),
            distributed.Client(scheduler_file=str(known)) as client,
        ):
            client.wait_for_workers(WORKERS, timeout=60)

            # To have finished is enough: fetching each result would cost dask another round trip.
            def ended(futures: list[Any]) -> int:
                if any(future.status != "finished" for future in futures):
                    raise SystemExit(f"a task failed: {futures}")
                return len(futures)

            def submit(count: int) -> list[Any]:
                return [client.submit(true, pure=False) for _ in range(count)]

            def wait(futures: list[Any]) -> None:
                distributed.wait(futures)
                ended(futures)

            def windowed(tasks: int, limit: int) -> None:
                flow = distributed.as_completed(submit(min(limit, tasks)))
                left = tasks - min(limit, tasks)
                for futures in flow.batches():
                    more = min(ended(list(futures)), left)
                    left -= more
                    flow.update(submit(more))

            def batch(count: int) -> None:
                wait(client.map(true, range(count), pure=False))

            versions = {"distributed": distributed.__version__}
            answers(out, versions, Side(lambda: wait(submit(1)), windowed, batch))


if __name__ == "__main__":
    main(*sys.argv[1:])
