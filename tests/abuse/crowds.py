"""Crowds that a node does not deserve; ``python crowds.py KIND …`` is one of them for a while.

A crowd comes from a process of its own, from loopback addresses of its own, is bounded in number and time,
and prints what became of it as one line of JSON.
"""

import argparse
import json
import random
import resource
import ssl
from collections import Counter
from dataclasses import dataclass, field

import trio

GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)
AT_A_TIME = 2000
"""Connections that are being opened."""
SPEC = json.dumps({"name": "load", "service": [{"driver": "native", "argv": ["true"]}]}).encode()


@dataclass
class Crowd:
    """Where to go, how many come, how long they stay, and what became of them."""

    host: str
    port: int
    count: int
    seconds: float
    task: str = ""
    addresses: int = 1
    counts: Counter = field(default_factory=Counter)
    accepted: list = field(default_factory=list)
    opening: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(AT_A_TIME))

    async def connect(self, number, *, room=0):
        """Connection ``number``, from its address; None where it was refused."""
        sock = trio.socket.socket()
        try:
            if room:
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, room)
            async with self.opening:
                await sock.bind((f"127.250.{self.port % 250}.{1 + number % self.addresses}", 0))
                await sock.connect((self.host, self.port))
        except OSError:
            sock.close()
            self.counts["not connected"] += 1
            return None
        self.counts["connected"] += 1
        return trio.SocketStream(sock)

    async def all_at_once(self, one):
        """``one(number)`` for each of the crowd, until the time is up."""
        with trio.move_on_after(self.seconds):
            async with trio.open_nursery() as nursery:
                for number in range(self.count):
                    nursery.start_soon(one, number)
                await trio.sleep_forever()


def get(path):
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path, body, headers=""):
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def open_many(crowd):
    """Connections that say nothing, all at once; most are closed by the node."""

    async def one(number):
        stream = await crowd.connect(number)
        if stream is not None:
            async with stream:
                try:
                    answer = await stream.receive_some()
                except GONE:
                    answer = b""
                crowd.counts["told why" if answer else "closed by the node"] += 1

    await crowd.all_at_once(one)


async def slow_heads(crowd):
    """Half over TLS: a head, a byte at a time; comes back when it is cut."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    async def one(number):
        while True:
            stream = await crowd.connect(number)
            if stream is None:
                await trio.sleep(1)
                continue
            try:
                if number % 2:
                    stream = trio.SSLStream(stream, context, https_compatible=True)
                    await stream.do_handshake()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(dribble, stream, b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 10_000)
                    await until_answered(crowd, stream)
                    nursery.cancel_scope.cancel()
            except GONE:
                crowd.counts["cut"] += 1
            finally:
                await trio.aclose_forcefully(stream)
            await trio.sleep(0.2)

    await crowd.all_at_once(one)


async def slow_bodies(crowd):
    """A task that is handed in a byte at a time."""

    async def one(number):
        while True:
            stream = await crowd.connect(number)
            if stream is None:
                await trio.sleep(1)
                continue
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(dribble, stream, post("/api/v1/tasks", SPEC + b" " * 10_000), 150)
                await until_answered(crowd, stream)
                nursery.cancel_scope.cancel()
            await trio.sleep(0.2)

    await crowd.all_at_once(one)


async def dribble(stream, data, first=1):
    try:
        await stream.send_all(data[:first])
        for number in range(first, len(data)):
            await trio.sleep(0.2)
            await stream.send_all(data[number : number + 1])
    except GONE:
        pass


async def until_answered(crowd, stream):
    try:
        answer = await stream.receive_some()
    except GONE:
        answer = b""
    crowd.counts[status_of(answer)] += 1


async def deaf_followers(crowd):
    """Each follows the output of a task that prints without end, and reads none of it."""

    async def one(number):
        stream = await crowd.connect(number, room=4096)
        if stream is not None:
            async with stream:
                await stream.send_all(get(f"/api/v1/tasks/{crowd.task}/output?follow=true"))
                await trio.sleep_forever()

    await crowd.all_at_once(one)


async def full_speed(crowd):
    """Requests of all kinds, good ones and bad ones, one after the other on each connection."""
    kinds = (
        (30, lambda _: get("/healthz")),
        (20, lambda _: get("/api/v1/nodes")),
        (20, lambda _: get("/api/v1/tasks?limit=20")),
        (5, lambda _: get("/metrics")),
        (5, lambda rng: get(f"/api/v1/tasks/{rng.choice(crowd.accepted or ['none'])}")),
        (8, lambda _: post("/api/v1/tasks", SPEC)),
        (4, lambda _: post("/api/v1/tasks", b'{"name": ' * 50)),
        (3, lambda _: get("/nowhere")),
        (3, lambda _: post("/api/v1/tasks", SPEC, "Authorization: Bearer wrong\r\n")),
        (2, lambda _: post("/api/v1/tasks?dry_run=true", SPEC)),
    )
    weights = [weight for weight, _ in kinds]

    async def one(number):
        rng = random.Random(number)
        stream, left = None, b""
        while True:
            if stream is None:
                stream, left = await crowd.connect(number), b""
            if stream is None:
                await trio.sleep(1)
                continue
            request = rng.choices(kinds, weights)[0][1](rng)
            try:
                await stream.send_all(request)
                answer, left = await one_answer(stream, left)
            except GONE:
                answer = b""
            crowd.counts[status_of(answer)] += 1
            if answer.startswith(b"HTTP/1.1 202"):
                crowd.accepted.append(json.loads(answer.partition(b"\r\n\r\n")[2])["id"])
            if not answer or b"connection: close" in answer.lower():
                await trio.aclose_forcefully(stream)
                stream = None

    await crowd.all_at_once(one)


async def one_answer(stream, data):
    """One whole answer, and what came after it."""
    while b"\r\n\r\n" not in data:
        piece = await stream.receive_some()
        if not piece:
            return b"", b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    length = int(fields.get(b"content-length", b"0"))
    while len(body) < length:
        piece = await stream.receive_some()
        if not piece:
            return b"", b""
        body += piece
    return head + b"\r\n\r\n" + body[:length], body[length:]


def status_of(answer):
    return answer[9:12].decode() if answer else "cut"


KINDS = {one.__name__: one for one in (open_many, slow_heads, slow_bodies, deaf_followers, full_speed)}


def main(options):
    """Be one crowd; print what became of it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    crowd = Crowd(
        host=options.host,
        port=options.port,
        count=min(options.count, most - 100),
        seconds=options.seconds,
        task=options.task,
        addresses=options.addresses,
    )
    trio.run(KINDS[options.kind], crowd)
    print(json.dumps({"counts": dict(sorted(crowd.counts.items())), "accepted": crowd.accepted}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--addresses", type=int, default=1)
    parser.add_argument("--task", default="")
    main(parser.parse_args())
