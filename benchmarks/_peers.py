"""What our server is compared with: applications as one would write them with the stock stack.

``python benchmarks/_peers.py stock|spawn|ours|tls ADDRESS [FOLDER]`` serves on a free port and prints it:

* ``stock``: a no-op POST in Quart-Trio on Hypercorn, both as they come;
* ``spawn``: bare ASGI on Hypercorn that starts ``/bin/true`` and answers when it has ended;
* ``ours``: the same no-op POST in edgeorch's Quart application on its server;
* ``tls``: bare ASGI on Hypercorn that answers at once, over TLS with the node's certificate in FOLDER.
"""

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Self

import msgspec
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import request
from quart_trio import QuartTrio

from edgeorch.config import Api, Node
from edgeorch.rest.api import App
from edgeorch.rest.asgi import Ready
from edgeorch.rest.server import Server

PATIENCE_S = 30.0


class Peer:
    """One of them in a process of its own; ``address`` is where it listens."""

    def __init__(self, kind: str, *more: str) -> None:
        argv = [sys.executable, __file__, kind, "127.0.0.1", *more]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = ("127.0.0.1", int(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


def _stock() -> QuartTrio:
    app = QuartTrio("stock")

    @app.post("/tasks")
    async def tasks() -> tuple[dict[str, Any], int]:
        body = await request.get_json()
        return {"id": "01", "name": body["name"], "state": "waiting"}, 202

    return app


def _ours() -> App:
    app = App("ours")

    @app.post("/tasks")
    async def tasks() -> Ready:
        body = msgspec.json.decode(b"".join([piece async for piece in request.body]))
        answer = {"id": "01", "name": body["name"], "state": "waiting"}
        return Ready(msgspec.json.encode(answer), 202, "application/json", {})

    return app


async def _spawn(
    _scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    while (await receive()).get("more_body"):
        pass
    pid = os.posix_spawn("/bin/true", ["/bin/true"], {})  # noqa: ASYNC221  the quickest way, as in the runner
    ended = os.pidfd_open(pid)
    await trio.lowlevel.wait_readable(ended)
    os.close(ended)
    _, status = os.waitpid(pid, 0)  # noqa: ASYNC222  it has ended
    body = b'{"exit_code": %d}' % status
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _echo(
    _scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _hypercorn(app: Any, host: str, folder: str = "") -> None:
    config = Config()
    if folder:
        config.certfile, config.keyfile = f"{folder}/pki/node.pem", f"{folder}/pki/node.key"
    config.bind, config.errorlog, config.accesslog = [f"{host}:0"], None, None
    config.keep_alive_max_requests = 1 << 62
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(partial(serve, app, config))
        print(urls[0].rpartition(":")[2].rstrip("/"), flush=True)


async def _edgeorch(app: Any, host: str) -> None:
    server = Server(app, Api(port=0), Node(listen=(host,)), None)
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(server.run)
        print(addresses[0][1], flush=True)


def main(kind: str, host: str, folder: str = "") -> None:
    """Serve until SIGTERM."""
    if kind == "ours":
        trio.run(_edgeorch, _ours(), host)
    elif kind == "stock":
        trio.run(_hypercorn, _stock(), host)
    else:
        trio.run(_hypercorn, {"spawn": _spawn, "tls": _echo}[kind], host, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
