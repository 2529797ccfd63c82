"""Services that the runner starts, ends and forgets per second, its CPU time for each, and its memory.

Plain, and with services kept out of each other's folders.

Run: python benchmarks/bench_runner.py [--seconds 3] [--json]
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from edgeorch.runner import protocol

ARGV = ("/bin/true",)
R = TypeVar("R", bound=protocol.Reply)


def rss(pid: int) -> int:
    """Resident memory in bytes."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


def cpu_s(pid: int) -> float:
    """CPU time of the process itself, without its children."""
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


class Client:
    """A daemon in its shortest form: one service after another."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(path))
        self._inbox, self._waiting = protocol.replies(), list[protocol.Reply]()
        self.count = 0
        self.pid = self._receive(protocol.Welcome).pid

    def close(self) -> None:
        self._sock.close()

    def one(self) -> float:
        """Start a service, wait for its end, forget it; the seconds until it was started."""
        self.count += 1
        key, at = f"a.{self.count}", time.monotonic()
        self._send(protocol.Start(id=1, key=key, argv=ARGV, env={}, output_max=1000, lease_s=10))
        self._receive(protocol.Started)
        started = time.monotonic() - at
        self._receive(protocol.Exited)
        self._send(protocol.Forget(id=2, key=key))
        self._receive(protocol.Done)
        return started

    def _send(self, request: protocol.Request) -> None:
        self._sock.sendall(protocol.encode(request))

    def _receive(self, kind: type[R]) -> R:
        while True:
            while self._waiting:
                message = self._waiting.pop(0)
                if isinstance(message, kind):
                    return message
            self._waiting.extend(self._inbox.feed(self._sock.recv(65536)))


def measure(folder: Path, seconds: float, *options: str) -> dict[str, float]:
    path = folder / "runner.sock"
    argv = [sys.executable, "-m", "edgeorch.runner", "--socket", str(path), "--work-dir", f"{folder}/tasks"]
    process = subprocess.Popen([*argv, *options], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with closing(Client(path)) as client:
            before, begin, started = cpu_s(process.pid), time.monotonic(), list[float]()
            while time.monotonic() - begin < seconds:
                started.append(client.one())
            return {
                "per_s": round(client.count / (time.monotonic() - begin), 1),
                "start_ms": round(statistics.median(started) * 1000, 2),
                "cpu_ms": round((cpu_s(process.pid) - before) / client.count * 1000, 3),
                "memory_bytes": rss(process.pid),
            }
    finally:
        process.terminate()
        process.wait()


def drive(path: Path, count: int) -> None:
    """Have a runner, which writes a line to stdin when it listens, run so many services, and end it."""
    sys.stdin.readline()
    with closing(Client(path)) as client:
        for _ in range(count):
            client.one()
        os.kill(client.pid, signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--drive", nargs=2, metavar=("SOCKET", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(Path(options.drive[0]), int(options.drive[1]))
        return
    found = {}
    for name in ("plain", "isolated"):
        with tempfile.TemporaryDirectory() as folder:
            more = ("--close", folder) if name == "isolated" else ()
            found[name] = measure(Path(folder), options.seconds, *more)
    if options.json:
        print(json.dumps(found))
        return
    for name, each in found.items():
        print(
            f"{name}: {each['per_s']} services/s one after another, {each['start_ms']} ms to start one, "
            f"{each['cpu_ms']} ms of CPU each, {int(each['memory_bytes']) / 1e6:.1f} MB"
        )


if __name__ == "__main__":
    main()
