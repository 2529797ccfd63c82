"""The contained server on real loopback sockets: what kills, wedges or confuses a stock one must not ours."""

import socket
import ssl
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme
from trio.testing import wait_all_tasks_blocked

from edgeorch.config import Api, Node
from edgeorch.errors import StartError
from edgeorch.rest import connection, tasks
from edgeorch.rest import server as server_module
from edgeorch.rest.api import create_app
from edgeorch.rest.auth import Tokens
from edgeorch.rest.server import Server, bind
from edgeorch.rest.steps import Steps
from edgeorch.testing.backend import MemoryBackend
from edgeorch.wire.messages import Chunk

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
SPEC = b'{"name":"a","service":[{"driver":"native","argv":["true"]}]}'
WEBSOCKET = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bKdPyn3u98cTfZJSh4TNeQ==\r\n\r\nx"
)
H2C = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAAA\r\n\r\n"
)
STRANGE = [
    WEBSOCKET,
    H2C,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"x",
    b"\x16\x03\x01\x02\x00garbage" * 20,
    b"\x00" * 1000,
    b"\xff\xfe\xfd\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET ?x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://[bad/ HTTP/1.1\r\nHost: [bad\r\n\r\n",
    b"GET /%ff%00 HTTP/1.1\r\nHost: a b\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n\r\n",
    b"HeAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: .\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: " + b"a" * 64 + b"\r\n\r\n",
    b"GET /healthz?" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"GET /healthz HTTP/1.1\nHost: localhost\n\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length : 5\r\n\r\nhello",
]


class Running:
    """A server under test with its backend."""

    def __init__(self, server, backend, address):
        self.server, self.backend, self.address = server, backend, address

    async def connect(self):
        return await trio.open_tcp_stream(*self.address)

    async def ask(self, data):
        """Send, and read to the end of the connection."""
        async with await self.connect() as stream:
            await stream.send_all(data)
            return await until_closed(stream)

    async def still_serves(self):
        answer = await self.ask(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


async def until_closed(stream):
    data = b""
    with trio.fail_after(10):
        try:
            async for piece in stream:
                data += piece
        except trio.BrokenResourceError:
            pass
    return data


async def one_answer(stream):
    """One response of known length."""
    data = b""
    with trio.fail_after(10):
        while b"\r\n\r\n" not in data:
            piece = await stream.receive_some()
            assert piece, data
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        while len(body) < length:
            body += await stream.receive_some()
    return head, body


@asynccontextmanager
async def serving(*, tls=None, **changes):
    api = Api(**{"port": 0, "anonymous_role": "admin", **changes})
    backend = MemoryBackend()
    tokens = Tokens(Path("/nonexistent/tokens.toml"), api)
    steps = Steps()
    app = create_app(backend, tokens, api, metrics=lambda: b"", wall=time.time, steps=steps)
    server = Server(app, api, Node(listen=("127.0.0.1",)), tls, steps)
    async with trio.open_nursery() as nursery:
        (address,) = await nursery.start(server.run)
        yield Running(server, backend, address)
        with trio.fail_after(10):
            await server.stop(1)


def post(body, *headers, path=b"/api/v1/tasks", length=None):
    lines = [
        b"POST " + path + b" HTTP/1.1",
        b"Host: localhost",
        b"Content-Type: application/json",
        *headers,
    ]
    if length is not False:
        lines.append(b"Content-Length: %d" % (len(body) if length is None else length))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def context_of(authority, *, alpn=("h2", "http/1.1")):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(list(alpn))
    certificate = authority.issue_cert("127.0.0.1")
    certificate.configure_cert(context)
    return context, certificate.cert_chain_pems[0].bytes()


async def tls_stream(running, authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    stream = trio.SSLStream(
        await running.connect(), context, server_hostname="127.0.0.1", https_compatible=True
    )
    await stream.do_handshake()
    return stream


@pytest.mark.parametrize("packet", STRANGE, ids=range(len(STRANGE)))
async def test_a_strangers_packet_ends_at_most_its_own_connection(packet, authority, monkeypatch):
    monkeypatch.setattr(connection, "HANDSHAKE_S", 0.2)
    context, _ = context_of(authority)
    async with serving(body_timeout_s=0.2, keep_alive_s=0.2, tls=lambda: context) as running:
        task_id = await submitted(running)
        running.backend.end = None
        bystander = await follow(running, task_id)
        assert b"200 OK" in await bystander.receive_some()
        await running.ask(packet)
        running.backend.print(Chunk(stream="stdout", offset=0, data=b"undisturbed"))
        assert b"undisturbed" in await bystander.receive_some()
        await bystander.aclose()
        await running.still_serves()


@pytest.mark.parametrize("packet", [WEBSOCKET, H2C])
async def test_upgrades_are_ignored(packet):
    async with serving(keep_alive_s=0.2, body_timeout_s=0.2) as running:
        answer = await running.ask(packet)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"101" not in answer


@pytest.mark.parametrize("host", [b".", b"a" * 64, b"a..b:80", b"\xdf" * 60])
async def test_a_host_that_is_none_is_a_bad_request(host):
    async with serving() as running:
        answer = await running.ask(GET.replace(b"localhost", host))
        assert answer.startswith(b"HTTP/1.1 400 ")
        await running.still_serves()


async def test_a_head_request_that_is_refused_has_no_body(capsys):
    async with serving() as running:
        answer = await running.ask(b"HEAD nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b"\r\n\r\n")
        # What is refused after it is another request.
        answer = await running.ask(GET.replace(b"GET", b"HEAD") + b"x\r\n\r\n")
        assert answer.count(b"HTTP/1.1 400 ") == 1
        assert answer.endswith(b"}")
    assert "Traceback" not in capsys.readouterr().out


async def test_resets_are_survived():
    async with serving() as running:
        for data in (b"", b"G", GET, post(SPEC)[:-5]):
            stream = await running.connect()
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            if data:
                await stream.send_all(data)
            stream.socket.close()
        await running.still_serves()


async def test_idle_connection_is_closed_after_keep_alive():
    async with serving(keep_alive_s=0.2, body_timeout_s=60) as running, await running.connect() as stream:
        await stream.send_all(GET)
        await one_answer(stream)
        assert await until_closed(stream) == b""


@pytest.mark.parametrize(
    "request_", [GET[:-2] + b"Connection: close\r\n\r\n", b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n"]
)
async def test_close_is_obeyed_at_once(request_):
    async with serving(keep_alive_s=60, body_timeout_s=60) as running:
        answer = await running.ask(request_)
        assert answer.endswith(b'{"status":"ok"}')


async def test_keep_alive_and_pipelining():
    async with serving() as running, await running.connect() as stream:
        await stream.send_all(GET * 3)
        data = b""
        while data.count(b'{"status":"ok"}') < 3:
            data += await stream.receive_some()
        await stream.send_all(GET)
        head, _ = await one_answer(stream)
        assert head.startswith(b"HTTP/1.1 200")


async def test_requests_that_came_together_take_turns_with_others():
    async with serving() as running, await running.connect() as stream:
        await stream.send_all(GET * 200)
        await stream.receive_some()
        # The first is answered; had they been served in one go, all would be.
        assert sum(running.server.statistics()["request_seconds"].counts) < 200


async def test_each_step_of_a_request_is_taken_down():
    async with serving() as running, await running.connect() as stream:
        for packet in (GET, post(SPEC), post(b"[]")):  # the last is refused: it has no tasks
            await stream.send_all(packet)
            await one_answer(stream)
        # The answer leaves before the request is over; the next one begins after it.
        await stream.send_all(GET)
        await one_answer(stream)
        found = running.server.statistics()
        assert sum(found["request_seconds"].counts) in {3, 4}
        assert sum(found["accept_seconds"].counts) == 4
        assert sum(found["decode_seconds"].counts) == 1


@pytest.mark.parametrize(
    "doubtful",
    [
        post(b"0\r\n\r\n", b"Transfer-Encoding: chunked"),
        post(b"0\r\n\r\n", b"Transfer-Encoding: chunked", length=len(GET)),
        post(b"0\r\n\r\n", b"Transfer-Encoding : chunked"),
        post(b"0\r\n\r\n", b"Transfer-Encoding: xchunked", length=False),
        post(SPEC, b"Content-Length: 3"),
        post(b"0\r\n\r\n", b"A: b", b" Transfer-Encoding: chunked", length=False),
        post(b"0\r\n\n", b"Transfer-Encoding: chunked", length=False),
        WEBSOCKET.replace(b"\r\n\r\nx", b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ],
)
async def test_what_could_be_read_in_two_ways_is_refused_and_nothing_after_it_is_read(doubtful):
    async with serving() as running:
        answer = await running.ask(doubtful + GET)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
        assert answer.count(b"HTTP/1.1 ") == 1
        assert running.backend.submitted == 0


async def test_head_says_the_same_without_a_body():
    async with serving() as running:
        task_id = await submitted(running)
        for path in ("/healthz", "/api/v1/nodes", f"/api/v1/tasks/{task_id}/output"):
            answer = await running.ask(
                f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
            )
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"\r\n\r\n")


async def test_absolute_target():
    async with serving() as running:
        answer = await running.ask(
            b"GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 200")


async def test_half_sent_head_gets_408():
    async with serving(body_timeout_s=0.2, keep_alive_s=60) as running:
        answer = await running.ask(GET[:20])
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"application/problem+json" in answer


async def test_dribbled_head_gets_408():
    async with serving(body_timeout_s=0.3, keep_alive_s=60) as running, await running.connect() as stream:

        async def dribble():
            try:
                while True:
                    await stream.send_all(b"GET /healthz HTTP/1.1\r\n" if not sent else b"A: b\r\n")
                    sent.append(1)
                    await trio.sleep(0.05)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        sent = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dribble)
            answer = await until_closed(stream)
            nursery.cancel_scope.cancel()
        assert answer.startswith(b"HTTP/1.1 408")


async def test_stalled_body_gets_408():
    async with serving(body_timeout_s=0.2, keep_alive_s=60) as running:
        answer = await running.ask(post(SPEC[:10], length=len(SPEC)))
        assert answer.startswith(b"HTTP/1.1 408")
        assert running.backend.submitted == 0


async def test_a_slow_answer_is_no_slow_request():
    async with serving(body_timeout_s=0.1, keep_alive_s=0.1) as running:
        running.backend.accepts = True
        started = trio.current_time()
        answer = await running.ask(post(SPEC, b"Prefer: wait=0.4", b"Connection: close"))
        assert answer.startswith(b"HTTP/1.1 202")
        assert trio.current_time() - started >= 0.4


async def test_silent_client_is_closed(monkeypatch):
    monkeypatch.setattr(connection, "HANDSHAKE_S", 0.1)
    async with serving() as running:
        assert await running.ask(b"") == b""


async def test_stalled_handshake_is_closed(monkeypatch, authority):
    monkeypatch.setattr(connection, "HANDSHAKE_S", 0.1)
    context, _ = context_of(authority)
    async with serving(tls=lambda: context) as running:
        assert await running.ask(b"\x16\x03\x01") == b""


@pytest.mark.parametrize("declared", [True, False])
async def test_too_large_body_gets_413_without_being_read(declared):
    async with serving(max_body=1000) as running, await running.connect() as stream:
        if declared:
            await stream.send_all(post(b"", length=50_000_000))
        else:
            await stream.send_all(post(b"", b"Transfer-Encoding: chunked", length=False))
            await stream.send_all(b"800\r\n" + b" " * 0x800 + b"\r\n")
        head, body = await one_answer(stream)
        assert head.startswith(b"HTTP/1.1 413")
        assert b"/docs/problems#too-large" in body
        assert running.backend.submitted == 0


async def test_client_that_sends_all_first_still_reads_413():
    async with serving(max_body=1000) as running:
        answer = await running.ask(post(b" " * 300_000))
        assert answer.startswith(b"HTTP/1.1 413")


async def test_expect_continue():
    async with serving(max_body=1000) as running:
        async with await running.connect() as stream:
            await stream.send_all(post(b"", b"Expect: 100-continue", length=len(SPEC)))
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 100")
            await stream.send_all(SPEC)
            head, _ = await one_answer(stream)
            assert head.startswith(b"HTTP/1.1 202")
        async with await running.connect() as stream:
            await stream.send_all(post(b"", b"Expect: 100-continue", length=5000))
            head, _ = await one_answer(stream)
            assert head.startswith(b"HTTP/1.1 413")
            assert b"\r\nconnection: close" in head, "its next request would be read as the body"


async def test_a_refused_request_with_a_long_body_says_that_nothing_can_follow_it():
    async with serving(max_body=1000) as running, await running.connect() as stream:
        await stream.send_all(post(b"", path=b"/nowhere", length=5000))
        head, _ = await one_answer(stream)
        assert head.startswith(b"HTTP/1.1 404")
        assert b"\r\nconnection: close" in head


async def test_a_refused_request_with_a_short_body_keeps_the_connection():
    async with serving() as running, await running.connect() as stream:
        await stream.send_all(post(b"", path=b"/nowhere", length=len(SPEC)))
        head, _ = await one_answer(stream)
        assert head.startswith(b"HTTP/1.1 404")
        await stream.send_all(SPEC + GET)
        head, _ = await one_answer(stream)
        assert head.startswith(b"HTTP/1.1 200")


async def test_tls_and_plain_on_one_port(authority):
    context, _ = context_of(authority)
    async with serving(tls=lambda: context) as running:
        async with await tls_stream(running, authority) as stream:
            assert stream.selected_alpn_protocol() == "http/1.1"
            await stream.send_all(GET)
            head, _ = await one_answer(stream)
            assert head.startswith(b"HTTP/1.1 200")
        await running.still_serves()


async def test_plain_http_from_elsewhere_is_told_to_use_tls(monkeypatch, authority):
    monkeypatch.setattr(connection, "is_loopback", lambda _: False)
    context, _ = context_of(authority)
    async with serving(tls=lambda: context) as running:
        answer = await running.ask(GET)
        assert answer.startswith(b"HTTP/1.1 426 ")
        assert b"\r\nUpgrade: TLS/1.2\r\n" in answer
        assert b"#tls-required" in answer
        stream = await tls_stream(running, authority)
        await stream.send_all(GET)
        head, _ = await one_answer(stream)
        assert head.startswith(b"HTTP/1.1 200")
        await stream.aclose()


async def test_certificates_rotate_live(authority):
    contexts = [context_of(authority)]
    async with serving(tls=lambda: contexts[-1][0]) as running:
        old = await tls_stream(running, authority)
        contexts.append(context_of(authority))
        new = await tls_stream(running, authority)
        for stream, (_, pem) in zip((old, new), contexts, strict=True):
            assert stream.getpeercert(True) == ssl.PEM_cert_to_DER_cert(pem.decode())
            await stream.send_all(GET)
            head, _ = await one_answer(stream)
            assert head.startswith(b"HTTP/1.1 200")
            await stream.aclose()


LIMITS = pytest.mark.parametrize(
    ("key", "status"), [("max_connections", b"503"), ("max_connections_per_address", b"429")]
)


@LIMITS
async def test_connections_over_the_limit_are_closed_at_accept(key, status, monkeypatch):
    monkeypatch.setattr(server_module, "MOST_TOLD", 0)
    async with serving(**{key: 2}) as running:
        kept = [await running.connect() for _ in range(2)]
        for stream in kept:
            await stream.send_all(GET)
            await one_answer(stream)
        assert await running.ask(b"") == b""
        assert running.server.statistics()["refused_total"] == 1
        await kept[0].send_all(GET[:-2] + b"Connection: close\r\n\r\n")
        await until_closed(kept[0])
        await wait_all_tasks_blocked()
        await running.still_serves()
        await kept[0].aclose()
        await kept[1].aclose()


@LIMITS
async def test_a_few_refused_connections_are_told_why(key, status, monkeypatch):
    monkeypatch.setattr(server_module, "MOST_TOLD", 1)
    async with serving(**{key: 2}) as running:
        kept = [await running.connect() for _ in range(2)]
        for stream in kept:
            await stream.send_all(GET)
            await one_answer(stream)
        for request_ in (GET, post(SPEC)):
            answer = await running.ask(request_)
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert b"\r\nretry-after: " in answer
            assert b"application/problem+json" in answer
            assert key.encode() in answer
        # One that asks nothing holds the only place; whoever comes meanwhile is closed at once.
        async with await running.connect():
            await wait_all_tasks_blocked()
            assert await running.ask(b"") == b""
        assert running.backend.submitted == 0
        for stream in kept:
            await stream.send_all(GET)
            await one_answer(stream)
            await stream.aclose()


async def connect_from(address, running):
    stream = trio.SocketStream(trio.socket.socket())
    await stream.socket.bind((address, 0))
    await stream.socket.connect(running.address)
    return stream


async def test_one_address_makes_room_for_the_others():
    """It holds every connection, silent, half a head, half a body, or under way: only the last is kept."""
    async with serving(max_connections=4, body_timeout_s=60) as running:
        task_id = await submitted(running)
        running.backend.end = None
        busy = await follow(running, task_id)
        assert b"200 OK" in await busy.receive_some()
        greedy = [await running.connect() for _ in range(3)]
        for stream, data in zip(greedy, (b"", GET[:9], post(SPEC)[:-9]), strict=True):
            await stream.send_all(data)
        await wait_all_tasks_blocked(0.05)
        others = []
        for number in range(2):
            stream = await connect_from(f"127.0.0.{10 + number}", running)
            await stream.send_all(GET)
            head, _ = await one_answer(stream)
            assert head.startswith(b"HTTP/1.1 200")
            others.append(stream)
        # Two are held by one address now, which is no more than its part.
        stream = await connect_from("127.0.0.12", running)
        await stream.send_all(GET)
        head, _ = await one_answer(stream)
        assert head.startswith(b"HTTP/1.1 200")
        async with await connect_from("127.0.0.13", running) as refused:
            await refused.send_all(GET)
            assert (await one_answer(refused))[0].startswith(b"HTTP/1.1 503")
        running.backend.print(Chunk(stream="stdout", offset=0, data=b"undisturbed"))
        assert b"undisturbed" in await busy.receive_some()
        for one in (busy, stream, *greedy, *others):
            await one.aclose()


async def submitted(running):
    await running.ask(post(SPEC, b"Connection: close"))
    return next(iter(running.backend.known))


async def follow(running, task_id):
    stream = await running.connect()
    await stream.send_all(
        f"GET /api/v1/tasks/{task_id}/output?follow=true HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    )
    return stream


async def stuffed(running):
    """A client that follows endless output and never reads; returns when the server can write no more."""
    task_id = await submitted(running)
    running.backend.end = None
    stream = await follow(running, task_id)
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(64):
        running.backend.print(Chunk(stream="stdout", offset=0, data=b"x" * (1 << 20)))
    return stream


async def test_a_client_that_never_reads_cannot_block_stopping():
    async with serving(write_timeout_s=60) as running:
        stream = await stuffed(running)
        with trio.fail_after(5):
            await running.backend.until(lambda: running.backend.streams == 1)
            await running.server.stop(0.2)
        # Leaving the block waits for the server to end; the fixture has a limit on it.
        await stream.aclose()
    assert running.server.statistics()["connections"] == 0


async def test_a_client_that_never_reads_is_cut():
    async with serving(write_timeout_s=0.3) as running:
        stream = await stuffed(running)
        with trio.fail_after(10):
            await running.backend.until(lambda: running.backend.streams == 1)
            await running.backend.until(lambda: running.backend.streams == 0)
        await wait_all_tasks_blocked()
        assert running.server.statistics()["connections"] == 0
        await stream.aclose()


async def test_nobody_waits_on_for_a_client_that_has_left(monkeypatch):
    monkeypatch.setattr(tasks, "UNWATCHED_S", 0.01)
    waiting, cut = trio.Event(), trio.Event()

    async def noted(*_given):
        waiting.set()
        try:
            await trio.sleep_forever()
        finally:
            cut.set()

    async with serving() as running:
        task_id, wait = await submitted(running), running.backend.wait

        async def wait_longer(which, caller, seconds):
            return await (noted() if seconds > 1 else wait(which, caller, seconds))

        monkeypatch.setattr(running.backend, "wait", wait_longer)
        stream = await running.connect()
        head = f"GET /api/v1/tasks/{task_id} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=100\r\n\r\n"
        await stream.send_all(head.encode())
        with trio.fail_after(10):
            await waiting.wait()
            await stream.aclose()
            await cut.wait()
        await running.still_serves()


async def test_a_vanished_follower_ends_its_stream():
    async with serving() as running:
        task_id = await submitted(running)
        running.backend.end = None
        stream = await follow(running, task_id)
        with trio.fail_after(5):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
            await stream.aclose()
            await running.backend.until(lambda: running.backend.streams == 0)


async def test_followed_output_comes_as_it_is_printed():
    async with serving(body_timeout_s=0.1, keep_alive_s=0.1) as running:
        task_id = await submitted(running)
        running.backend.end = None
        stream = await follow(running, task_id)
        with trio.fail_after(5):
            assert b"chunked" in await stream.receive_some()
            running.backend.print(Chunk(stream="stdout", offset=0, data=b"hello"))
            assert b"hello" in await stream.receive_some()
            running.backend.print(end="ended")
            assert b"0\r\n\r\n" in await stream.receive_some()
        await stream.aclose()


async def test_stop_closes_idle_lets_running_end_and_cuts_the_rest():
    async with serving(keep_alive_s=60) as running, trio.open_nursery() as nursery:
        task_id = await submitted(running)
        running.backend.end = None
        idle = await running.connect()
        await idle.send_all(GET)
        await one_answer(idle)
        ends, hangs = await follow(running, task_id), await follow(running, task_id)
        for stream in (ends, hangs):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        nursery.start_soon(running.server.stop, 0.5)
        assert await until_closed(idle) == b""
        with pytest.raises(OSError, match="connect"):
            await running.connect()
        running.backend.print(Chunk(stream="stdout", offset=0, data=b"last"))
        assert b"last" in await ends.receive_some()
        await ends.aclose()
        data = await until_closed(hangs)
        assert not data.endswith(b"0\r\n\r\n")
        for stream in (idle, hangs):
            await stream.aclose()


async def test_a_defect_is_a_500_that_says_nothing_of_internals(capsys):
    async with serving() as running:
        running.backend.raises = RuntimeError("secret detail")
        answer = await running.ask(post(SPEC, b"Connection: close"))
        assert answer.startswith(b"HTTP/1.1 500")
        assert b"secret" not in answer
        assert b"log_id" in answer
        running.backend.raises = None
        await running.still_serves()
    assert "secret detail" in capsys.readouterr().out


async def test_an_application_that_raises_ends_only_its_connection(capsys):
    async def app(scope, receive, send):
        if scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("defect")

    server = Server(app, Api(port=0), Node(listen=("127.0.0.1",)), None)
    async with trio.open_nursery() as nursery:
        (address,) = await nursery.start(server.run)
        running = Running(server, None, address)
        assert (await running.ask(GET)).startswith(b"HTTP/1.1 500")
        late = await running.ask(GET.replace(b"/healthz", b"/late"))
        assert late.startswith(b"HTTP/1.1 200")
        assert not late.endswith(b"0\r\n\r\n")
        assert (await running.ask(GET)).startswith(b"HTTP/1.1 500")
        await server.stop(1)
    assert "defect" in capsys.readouterr().out


async def test_strangers_make_no_tracebacks(capsys):
    async with serving(body_timeout_s=0.2, keep_alive_s=0.2) as running:
        for packet in STRANGE:
            await running.ask(packet)
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err


def test_port_in_use_is_one_sentence():
    (one,) = bind(("127.0.0.1",), 0)
    port = one.getsockname()[1]
    with pytest.raises(StartError, match=f"127.0.0.1 port {port}: it is in use"):
        bind(("127.0.0.1",), port)
    one.close()


def test_a_foreign_address_is_one_sentence():
    with pytest.raises(StartError, match="no such address"):
        bind(("192.0.2.77",), 0)


def test_wildcard_takes_one_port_for_both_families():
    sockets = bind((), 0)
    assert len({one.getsockname()[1] for one in sockets}) == 1
    for one in sockets:
        one.close()


async def test_the_wildcard_listener_serves_allowed_local_addresses_only(monkeypatch):
    asked = []
    monkeypatch.setattr(server_module, "is_loopback", lambda _: False)
    monkeypatch.setattr(
        server_module, "allowed_local", lambda address, networks: asked.append(address) or False
    )
    server = Server(None, Api(port=0), Node(networks=("192.0.2.0/24",)), None)
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(server.run)
        running = Running(server, None, ("127.0.0.1", addresses[0][1]))
        assert await running.ask(b"") == b""
        assert await running.ask(b"") == b""
        await server.stop(0)
    assert asked == ["127.0.0.1"]
