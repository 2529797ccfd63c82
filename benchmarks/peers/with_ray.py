"""Ray, a head with two worker processes: ``with_ray.py FOLDER``."""

import os
import subprocess
import sys

from _turns import Side, answers, own_stdout

WORKERS = 2


def true() -> None:
    """The work."""
    subprocess.run(["/bin/true"], check=True)


def main(folder: str) -> None:
    """Serve."""
    out = own_stdout()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # its own way to say: listen on loopback alone
    import ray

    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=folder,
    )
    try:
        task = ray.remote(true)

        def windowed(tasks: int, limit: int) -> None:
            waiting = [task.remote() for _ in range(min(limit, tasks))]
            left = tasks - len(waiting)
            while waiting:
                done, waiting = ray.wait(waiting)
                ray.get(done)
                if left:
                    waiting.append(task.remote())
                    left -= 1

        def batch(count: int) -> None:
            ray.get([task.remote() for _ in range(count)])

        answers(out, {"ray": ray.__version__}, Side(lambda: ray.get(task.remote()), windowed, batch))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
