"""The side of a peer: its servers and its own client, started here; it runs each turn that it is asked for.

The first line on stdout is what it is, ``{"versions": {…}}``; then ``{"turn": "single", "tasks": 400}`` on
stdin is answered with ``{"value": 4.2}`` on stdout, until stdin ends. All other talk goes to stderr.
"""

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

IN_FLIGHT = 64
BATCH = 100
PATIENCE_S = 60.0


class Side:
    """What each peer says in its own words.

    Args:
        one: hand in one task and wait until it has finished.
        windowed: run so many tasks, never more than so many handed in and not finished.
        batch: hand in so many at once, as one batch where the peer has such a thing, and wait for all.
    """

    def __init__(
        self, one: Callable[[], Any], windowed: Callable[[int, int], Any], batch: Callable[[int], Any]
    ) -> None:
        self._one, self._windowed, self._batch = one, windowed, batch

    def turn(self, kind: str, tasks: int) -> float:
        """Median milliseconds of one at a time, or tasks a second."""
        if kind == "single":
            return statistics.median(_took(self._one) for _ in range(tasks)) * 1e3
        if kind == "windowed":
            return tasks / _took(lambda: self._windowed(tasks, IN_FLIGHT))
        batches = range(max(tasks // BATCH, 1))
        return len(batches) * BATCH / _took(lambda: [self._batch(BATCH) for _ in batches])


def answers(out: Any, versions: dict[str, str], side: Side) -> None:
    """Take turns until stdin ends."""
    print(json.dumps({"versions": versions}), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps({"value": side.turn(asked["turn"], asked["tasks"])}), file=out, flush=True)


def own_stdout() -> Any:
    """Stdout for the answers alone; whatever a library or a server prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this ends it
    return out


@contextlib.contextmanager
def server(*argv: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server process, stopped at the end."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env={**os.environ, **environment})
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(what: str, ready: Callable[[], bool], *needed: subprocess.Popen[bytes]) -> None:
    """Wait for a server to come up."""
    end = time.monotonic() + PATIENCE_S
    while not ready():
        if any(process.poll() is not None for process in needed):
            raise SystemExit(f"{what} ended at once")
        if time.monotonic() > end:
            raise SystemExit(f"{what} is not up after {PATIENCE_S:g} s")
        time.sleep(0.05)


def free_port() -> int:
    """A port on loopback that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def beside(name: str) -> str:
    """The path of a command of this environment."""
    return str(Path(sys.executable).with_name(name))


def _took(what: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    what()
    return time.perf_counter() - begun
