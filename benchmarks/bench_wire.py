"""Calls between two nodes over one link: time of one, rate of many. The other node is a process of its own.

Run: python benchmarks/bench_wire.py [--seconds 3] [--json]
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from edgeorch.config import Config, Loaded
from edgeorch.identity import Authority, load_identity
from edgeorch.model import NodeInfo
from edgeorch.wire import Handlers
from edgeorch.wire.links import Links
from edgeorch.wire.listener import Listener
from edgeorch.wire.messages import Hello, Renew, Renewed
from edgeorch.wire.transport import Tls

REQUEST = Renew(keys=("01jd3x0000000000000000000z-abcdefghjk.1", "01jd3x0000000000000000000y-abcdefghjk.1"))


def links_of(folder: Path, handlers: Handlers) -> tuple[Links, str]:
    identity = load_identity(
        Loaded(config=Config(), path=folder / "edgeorch.toml", origins={}), wall=time.time
    )
    info = NodeInfo(id=identity.node_id, name=identity.name, fleet="bench", version="0")
    links = Links(Tls(identity), lambda: Hello(info=info), handlers, max_links=64, rng=random.Random())
    return links, identity.node_id


async def serve(folder: Path) -> None:
    async def renew(_sender: object, request: Renew) -> Renewed:
        return Renewed(keys=request.keys)

    links, _ = links_of(folder, Handlers({Renew: renew}))
    async with trio.open_nursery() as nursery:
        await nursery.start(links.run)
        print(await nursery.start(Listener(links, port=0, listen=("127.0.0.1",)).run), flush=True)


async def measure(folder: Path, port: int, seconds: float) -> dict[str, float]:
    links, _ = links_of(folder, Handlers())
    times: list[float] = []
    count = 0

    async def caller(node_id: str) -> None:
        nonlocal count
        while True:
            await links.call(node_id, REQUEST)
            count += 1

    async with trio.open_nursery() as nursery:
        await nursery.start(links.run)
        node_id = await links.dial_unknown("127.0.0.1", port)
        with trio.move_on_after(seconds):
            while True:
                start = time.perf_counter()
                await links.call(node_id, REQUEST)
                times.append(time.perf_counter() - start)
        start = time.perf_counter()
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as callers:
                for _ in range(64):
                    callers.start_soon(caller, node_id)
        rate = count / (time.perf_counter() - start)
        nursery.cancel_scope.cancel()
    cuts = statistics.quantiles(times, n=100)
    return {
        "p50_ms": round(cuts[49] * 1e3, 3),
        "p99_ms": round(cuts[98] * 1e3, 3),
        "sequential_per_s": round(len(times) / seconds),
        "in_flight_64_per_s": round(rate),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(serve, options.serve)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        authority = Authority.create(folder / "ca", "bench")
        for name in ("client", "server"):
            authority.issue(name, ["127.0.0.1"]).write(folder / name)
        command = [sys.executable, __file__, "--serve", str(folder / "server")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout
                port = int(server.stdout.readline())
                found = trio.run(measure, folder / "client", port, options.seconds)
            finally:
                server.terminate()
    print(
        json.dumps(found) if options.json else "\n".join(f"{key:20} {value}" for key, value in found.items())
    )


if __name__ == "__main__":
    main()
