"""Celery on Redis: ``with_celery.py FOLDER no|always``, the last with each change synced to disk."""

import os
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path

from _turns import Side, answers, beside, free_port, own_stdout, server, until

WORKERS = 2


def main(folder: str, fsync: str) -> None:
    """Serve."""
    out = own_stdout()
    redis = shutil.which("redis-server")
    if redis is None:
        raise SystemExit("redis-server is not on PATH (Debian: apt install redis-server)")
    said = subprocess.run([redis, "--version"], capture_output=True, text=True, check=True).stdout
    port = free_port()
    os.environ["BENCH_REDIS"] = f"redis://127.0.0.1:{port}/0"

    import celery
    import kombu
    import redis as client
    from celery_app import app, true

    disk = ["--appendonly", "yes", "--appendfsync", fsync] if fsync == "always" else ["--save", ""]
    bind = ["--bind", "127.0.0.1", "--port", str(port), "--dir", folder]
    worker = ["-A", "celery_app", "worker", "--pool", "prefork", "--concurrency", str(WORKERS)]
    with (
        server(redis, *bind, *disk) as store,
        server(beside("celery"), "--workdir", str(Path(__file__).parent), *worker) as pool,
    ):
        connection = client.Redis(port=port)

        def answering() -> bool:
            try:
                return bool(connection.ping() and app.control.ping(timeout=0.5))
            except (client.ConnectionError, kombu.exceptions.OperationalError):
                return False

        until("celery", answering, store, pool)

        def windowed(tasks: int, limit: int) -> None:
            waiting = deque(true.delay() for _ in range(min(limit, tasks)))
            for _ in range(tasks - len(waiting)):
                waiting.popleft().get()
                waiting.append(true.delay())
            for result in waiting:
                result.get()

        def batch(count: int) -> None:
            celery.group(true.s() for _ in range(count)).delay().get()

        versions = {"celery": celery.__version__, "redis": said.split("v=")[1].split()[0]}
        answers(out, versions, Side(lambda: true.delay().get(), windowed, batch))


if __name__ == "__main__":
    main(*sys.argv[1:])
