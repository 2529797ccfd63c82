"""Counts the instructions of the hot paths and says which took more than the committed baseline.

``python benchmarks/guard.py [--write] [NAME …]`` needs ``valgrind``. Unlike times, instructions hardly depend
on the machine's load; they do depend on the release of Python, so ``baseline.json`` has figures for each that
it was written on, and on another there is nothing to compare with. More than 15 % over the baseline is a
failure: find out why, or write a new baseline and say in the commit what it buys.
"""

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path

BASELINE = Path(__file__).with_name("baseline.json")
TOLERATED = 1.15
TIMES = (40, 120)
"""Each path is taken so often in one process and so often in another; the difference is the path's alone."""
SPEC = {"name": "resize", "service": [{"driver": "native", "argv": ["/usr/bin/resize", "in.jpg"]}]}


# What is counted: each is called with how often, in a process of its own


def http(count: int) -> None:
    """POST of a task over a keep-alive connection, with a backend in memory."""
    import trio

    from edgeorch.config import Api, Node
    from edgeorch.rest.api import create_app
    from edgeorch.rest.auth import Tokens
    from edgeorch.rest.server import Server
    from edgeorch.rest.tokens import Token, hash_of, new_text, write_tokens
    from edgeorch.testing.backend import MemoryBackend

    async def run(folder: Path) -> None:
        word, path, api = new_text(), folder / "tokens.toml", Api(port=0)
        token = Token(
            name="guard", role="submit", sha256=hash_of(word), created=datetime(2026, 1, 1, tzinfo=UTC)
        )
        path.write_bytes(write_tokens([token]))
        path.chmod(0o600)
        app = create_app(MemoryBackend(), Tokens(path, api), api, metrics=lambda: b"", wall=time.time)
        server = Server(app, api, Node(listen=("127.0.0.1",)), None)
        body = json.dumps(SPEC).encode()
        head = (
            f"POST /api/v1/tasks HTTP/1.1\r\nHost: guard\r\nAuthorization: Bearer {word}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        async with trio.open_nursery() as nursery:
            addresses = await nursery.start(server.run)
            async with await trio.open_tcp_stream(*addresses[0]) as stream:
                for _ in range(count):
                    await stream.send_all(head.encode() + body)
                    answer = await stream.receive_some()
                    if not answer.startswith(b"HTTP/1.1 202"):
                        raise SystemExit(bytes(answer))
            nursery.cancel_scope.cancel()

    with tempfile.TemporaryDirectory() as folder:
        trio.run(run, Path(folder))


def task(count: int) -> None:
    """A task from its acceptance to its end on the node that accepted it, with twins of store and driver."""
    _tasks(count)


def remote(count: int) -> None:
    """The same on another node, with a twin of the network too."""
    _tasks(count, "b", placement={"node": "b"})


def _tasks(count: int, *others: str, **fields: object) -> None:
    import trio
    import trio.testing

    from edgeorch.testing.fleet import ADMIN, VirtualFleet

    async def run(folder: Path) -> None:
        fleet = VirtualFleet(folder)
        node = fleet.add("a")
        nodes = [node, *map(fleet.add, others)]
        async with trio.open_nursery() as nursery:
            for one in nodes:
                await nursery.start(one.host.run)
                await nursery.start(one.run)
            for _ in range(count):
                made = await node.submit("true", **fields)
                ended = await node.dispatch.wait(made.id, ADMIN, 100)
                if ended.state != "succeeded":
                    raise SystemExit(str(ended))
            nursery.cancel_scope.cancel()

    with tempfile.TemporaryDirectory() as folder:
        trio.run(run, Path(folder), clock=trio.testing.MockClock(autojump_threshold=0))


def wire(count: int) -> None:
    """An offer as bytes and back, with its answer."""
    from edgeorch.model import Caller, Offer
    from edgeorch.wire import codec, frames
    from edgeorch.wire.frames import FrameBuffer, Kind
    from edgeorch.wire.messages import MakeOffer

    caller = Caller(token="guard", role="submit")
    offer = Offer(
        task_id="t", number=1, origin="0" * 10, name="n", spec=json.dumps(SPEC).encode(), caller=caller
    )
    inbox = FrameBuffer()
    for number in range(count):
        for frame in inbox.feed(bytes(frames.encode(Kind.REQUEST, number, MakeOffer(offer=offer)))):
            codec.body(frame)


def rank(count: int) -> None:
    """The choice of one of 64 nodes, after a new sample of one of them."""
    import trio
    from bench_rank import World

    from edgeorch import logs
    from edgeorch.config import Log

    logs.set_up(Log(level="error"))  # each node that is found would be told of

    async def run() -> None:
        world = World(63)
        for _ in range(count):
            world.hear()
            world.choose()

    trio.run(run)


def runner(count: int) -> None:
    """A native service in the runner from its start until it is forgotten; its own process is not counted."""
    import bench_runner

    from edgeorch.runner.__main__ import main as run

    folder = tempfile.mkdtemp(prefix="edgeorch-guard-")
    try:
        path = f"{folder}/runner.sock"
        listening, says = os.pipe()
        # Not our child: the runner would take it for what a service has left behind.
        argv = ["setsid", "--fork", sys.executable, bench_runner.__file__, "--drive", path, str(count)]
        subprocess.run(argv, stdin=listening, check=True)
        with redirect_stdout(os.fdopen(says, "w")):
            status = run(["--socket", path, "--work-dir", f"{folder}/tasks", "--linger-s", "60"])
        ran = Path(folder, "tasks/.exits").read_text().count('"ended"')
        if status or ran < count:
            raise SystemExit(f"the runner ended with {status} after {ran} services")
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)  # in a process that is not counted


PATHS: dict[str, Callable[[int], None]] = {
    "http": http,
    "task": task,
    "remote": remote,
    "wire": wire,
    "rank": rank,
    "runner": runner,
}


# How it is counted


def inside(names: list[str]) -> None:
    """Under valgrind: fork, so that what all have in common is loaded once."""
    from edgeorch import logs
    from edgeorch.config import Log

    logs.set_up(Log(format="json"))
    for name in names:
        if name == "runner":  # which a process cannot be for a while
            import edgeorch.runner.__main__  # noqa: F401
        else:
            PATHS[name](3)  # imports and caches
        for count in TIMES:
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                random.seed(1)
                PATHS[name](count)
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            if status:
                raise SystemExit(f"{name} failed under valgrind")
            print(f"{name} {count} {pid}", flush=True)


def measured(names: list[str]) -> dict[str, int]:
    """Instructions for one time of each path."""
    with tempfile.TemporaryDirectory(prefix="edgeorch-guard-") as folder:
        argv = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/%p", sys.executable, __file__]
        env = {**os.environ, "PYTHONHASHSEED": "0"}
        try:
            done = subprocess.run(
                [*argv, "--inside", *names], env=env, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise SystemExit("guard: valgrind is missing: apt-get install valgrind") from None
        if done.returncode:
            raise SystemExit(f"guard: {done.stderr[-2000:]}")
        totals: dict[str, list[int]] = {}
        for line in done.stdout.splitlines():
            name, _, pid = line.split()
            found = re.search(r"^summary: (\d+)$", Path(folder, pid).read_text(), re.MULTILINE)
            if found is None:
                raise SystemExit(f"guard: valgrind counted nothing for {name}")
            totals.setdefault(name, []).append(int(found[1]))
    few, many = TIMES
    return {name: (more - less) // (many - few) for name, (less, more) in totals.items()}


def main() -> int:
    """Count, compare, and write if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PATHS)} (default: all)")
    parser.add_argument("--write", action="store_true", help="make these figures the baseline")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.names or list(PATHS)
    if unknown := set(names) - PATHS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(PATHS)}")
    if given.inside:
        inside(names)
        return 0
    figures, worse = measured(names), []
    release = f"{platform.python_version()} {platform.machine()}"
    baselines = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    known = baselines.get(release, {})
    for name, count in figures.items():
        before = known.get(name)
        against = f"{count / before:.2f} of the baseline's {before:,}" if before else "no baseline"
        print(f"{name:6} {count:>12,} instructions, {against}")
        if before and count > before * TOLERATED:
            worse.append(name)
    if given.write:
        baselines[release] = {**known, **figures}
        BASELINE.write_text(json.dumps(baselines, indent=1, sort_keys=True) + "\n")
    elif not known:
        print(f"baseline.json has nothing for Python {release}: nothing was compared", file=sys.stderr)
    elif worse:
        print(f"guard: over {TOLERATED:.2f} of the baseline: {', '.join(worse)}", file=sys.stderr)
    return int(bool(worse) and not given.write)


if __name__ == "__main__":
    raise SystemExit(main())
