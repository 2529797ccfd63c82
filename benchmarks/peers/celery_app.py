"""The Celery application, loaded by the worker and by the client alike."""

import os
import subprocess

from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])


@app.task
def true() -> None:
    """The work."""
    subprocess.run(["/bin/true"], check=True)
