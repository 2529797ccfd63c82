"""Services that the runner starts, ends and forgets per second, and its memory; plain and kept apart.

Run: python benchmarks/bench_runner.py [--seconds 3] [--json]
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from edgeorch.runner import protocol

ARGV = ("/bin/true",)


def rss(pid: int) -> int:
    """Resident memory in bytes."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


def measure(folder: Path, seconds: float, *options: str) -> dict[str, float | str]:
    path = folder / "runner.sock"
    argv = [sys.executable, "-m", "edgeorch.runner", "--socket", str(path), "--work-dir", f"{folder}/tasks"]
    process = subprocess.Popen([*argv, *options], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.connect(str(path))
            return _drive(sock, seconds) | {"memory_bytes": rss(process.pid)}
    finally:
        process.terminate()
        process.wait()


def _drive(sock: socket.socket, seconds: float) -> dict[str, float | str]:
    inbox, waiting = protocol.replies(), list[protocol.Reply]()

    def ask(request: protocol.Request, until: type[protocol.Reply]) -> protocol.Reply:
        sock.sendall(protocol.encode(request))
        return receive(until)

    def receive(until: type[protocol.Reply]) -> protocol.Reply:
        while True:
            while waiting:
                message = waiting.pop(0)
                if isinstance(message, until):
                    return message
            waiting.extend(inbox.feed(sock.recv(65536)))

    receive(protocol.Welcome)
    started: list[float] = []
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        key = f"a.{len(started)}"
        at = time.monotonic()
        ask(protocol.Start(id=1, key=key, argv=ARGV, env={}, output_max=1000), protocol.Started)
        started.append(time.monotonic() - at)
        receive(protocol.Exited)
        ask(protocol.Forget(id=2, key=key), protocol.Done)
    return {
        "per_s": round(len(started) / (time.monotonic() - begin), 1),
        "start_ms": round(statistics.median(started) * 1000, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
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
            f"{int(each['memory_bytes']) / 1e6:.1f} MB"
        )


if __name__ == "__main__":
    main()
