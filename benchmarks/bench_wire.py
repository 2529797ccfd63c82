"""A call from node to node over their link, against httpx2 keep-alive to Hypercorn over TLS.

The other side is a process of its own each time; the request is the one that renews two leases.
"""

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import httpx2
import trio
from _peers import Peer
from _rounds import compare, options, show

from edgeorch.config import Config, Loaded, Log
from edgeorch.identity import Authority, load_identity
from edgeorch.logs import set_up
from edgeorch.model import NodeInfo
from edgeorch.wire import Handlers
from edgeorch.wire.links import Links
from edgeorch.wire.listener import Listener
from edgeorch.wire.messages import Hello, Renew, Renewed
from edgeorch.wire.transport import Tls

KEYS = ("01jd3x0000000000000000000z-abcdefghjk.1", "01jd3x0000000000000000000y-abcdefghjk.1")
REQUEST = Renew(keys=KEYS)
IN_FLIGHT = 64

Call = Callable[[], Awaitable[object]]


def _links(folder: Path, handlers: Handlers) -> Links:
    identity = load_identity(
        Loaded(config=Config(), path=folder / "edgeorch.toml", origins={}), wall=time.time
    )
    info = NodeInfo(id=identity.node_id, name=identity.name, fleet="bench", version="0")
    return Links(Tls(identity), lambda: Hello(info=info), handlers, max_links=64, rng=random.Random())


async def serve(folder: Path) -> None:
    """A node that answers the request; prints its port."""

    async def renew(_sender: object, request: Renew) -> Renewed:
        return Renewed(keys=request.keys)

    links = _links(folder, Handlers({Renew: renew}))
    async with trio.open_nursery() as nursery:
        await nursery.start(links.run)
        print(await nursery.start(Listener(links, port=0, listen=("127.0.0.1",)).run), flush=True)


async def _over_link(folder: Path, port: int, measure: Callable[[Call], Awaitable[float]]) -> float:
    links = _links(folder, Handlers())
    async with trio.open_nursery() as nursery:
        await nursery.start(links.run)
        node_id = await links.dial_unknown("127.0.0.1", port)
        found = await measure(partial(links.call, node_id, REQUEST))
        nursery.cancel_scope.cancel()
    return found


async def _over_http(ca: Path, port: int, measure: Callable[[Call], Awaitable[float]]) -> float:
    async with httpx2.AsyncClient(verify=str(ca), timeout=60) as client:
        return await measure(partial(client.post, f"https://127.0.0.1:{port}/", json={"keys": KEYS}))


async def _p50_ms(count: int, call: Call) -> float:
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        await call()
        found.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(found)


async def _rate(count: int, call: Call) -> float:
    left = iter(range(count))

    async def caller() -> None:
        for _ in left:
            await call()

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(caller)
    return count / (time.perf_counter() - begun)


def main() -> int:
    """Measure one call at a time, and 64 in flight."""
    parser = options(__doc__)
    parser.add_argument("--calls", type=int, default=300, help="in each turn (default 300)")
    if sys.argv[1:2] == ["serve"]:
        trio.run(serve, Path(sys.argv[2]))
        return 0
    given = parser.parse_args()
    set_up(Log(level="error"))
    with tempfile.TemporaryDirectory(prefix="edgeorch-bench-") as place:
        folder = Path(place)
        authority = Authority.create(folder / "ca", "bench")
        for name in ("client", "server"):
            authority.issue(name, ["127.0.0.1"]).write(folder / name)
        ca = folder / "client" / "pki" / "ca.pem"
        command = [sys.executable, __file__, "serve", str(folder / "server")]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
            Peer("tls", str(folder / "server")) as http,
        ):
            try:
                assert server.stdout
                port = int(server.stdout.readline())
                link = partial(trio.run, _over_link, folder / "client", port)
                over_http = partial(trio.run, _over_http, ca, http.address[1])
                rows = [
                    compare(
                        "call to another node, one at a time, p50",
                        "ms",
                        partial(link, partial(_p50_ms, given.calls)),
                        "httpx2 keep-alive to Hypercorn over TLS",
                        partial(over_http, partial(_p50_ms, given.calls)),
                        goal="<= 0.35",
                        rounds=given.rounds,
                    ),
                    compare(
                        f"calls to another node, {IN_FLIGHT} in flight",
                        "/s",
                        partial(link, partial(_rate, given.calls * 30)),
                        "httpx2 keep-alive to Hypercorn over TLS",
                        partial(over_http, partial(_rate, given.calls)),
                        goal=">= 25",
                        rounds=given.rounds,
                    ),
                ]
            finally:
                server.terminate()
    return show(rows, given)


if __name__ == "__main__":
    raise SystemExit(main())
