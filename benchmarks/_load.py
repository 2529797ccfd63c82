"""Clients of one HTTP server: many keep-alive connections in one thread, each with one request under way."""

import contextlib
import random
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator

LIMIT_S = 60.0


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of a request."""
    shown = {"Host": "bench", "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in shown.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def times(address: tuple[str, int], what: bytes, count: int) -> list[float]:
    """Seconds that each of ``count`` requests took, one after the other on one connection."""
    with contextlib.closing(socket.create_connection(address, timeout=LIMIT_S)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found = []
        for _ in range(count):
            begun = time.perf_counter()
            sock.sendall(what)
            answer = bytearray()
            while not _complete(answer):
                answer += _received(sock)
            found.append(time.perf_counter() - begun)
            _check(answer)
        return found


def response(address: tuple[str, int], what: bytes) -> bytes:
    """The body of the answer to one request, on a connection of its own."""
    with contextlib.closing(socket.create_connection(address, timeout=LIMIT_S)) as sock:
        sock.sendall(what)
        answer = bytearray()
        while not _complete(answer):
            answer += _received(sock)
    _check(answer)
    return bytes(answer.partition(b"\r\n\r\n")[2])


def rate(address: tuple[str, int], what: bytes, count: int, clients: int) -> float:
    """Requests a second where ``clients`` connections share ``count`` requests."""
    left = iter(range(count))
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(min(clients, count)):
            sock = stack.enter_context(socket.create_connection(address, timeout=LIMIT_S))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(sock, selectors.EVENT_READ, bytearray())
        begun = time.perf_counter()
        waiting = sum(_next(key.fileobj, what, left) for key in selector.get_map().values())
        while waiting:
            for key, _ in selector.select(LIMIT_S) or _nothing():
                key.data.extend(_received(key.fileobj))
                if _complete(key.data):
                    _check(key.data)
                    key.data.clear()
                    waiting += _next(key.fileobj, what, left) - 1
        return count / (time.perf_counter() - begun)


def offered(
    address: tuple[str, int], what: bytes, a_second: float, seconds: float, clients: int
) -> list[tuple[float, float]]:
    """Requests that come at random moments, however long the answers take.

    Returns:
        For each, when it was due and how many seconds later its answer was there, the wait for one of the
        ``clients`` connections included.
    """
    rng, found = random.Random(1), []
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        idle = deque()

        def connect() -> None:
            sock = stack.enter_context(socket.create_connection(address, timeout=LIMIT_S))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(sock, selectors.EVENT_READ, bytearray())
            idle.append(sock)

        for _ in range(clients):
            connect()
        due, end, since = time.perf_counter(), time.perf_counter() + seconds, {}
        while due < end or since:
            now = time.perf_counter()
            while idle and due <= min(now, end):
                sock = idle.popleft()  # the one that waited longest: servers close idle ones
                since[sock] = due
                sock.sendall(what)
                due += rng.expovariate(a_second)
            wait = max(due - time.perf_counter(), 0) if idle and due < end else LIMIT_S
            events = selector.select(wait)
            if not events and wait == LIMIT_S:
                _nothing()
            for key, _ in events:
                if key.fileobj in idle:
                    idle.remove(key.fileobj)
                    selector.unregister(key.fileobj).fileobj.close()
                    connect()
                    continue
                key.data.extend(_received(key.fileobj))
                if _complete(key.data):
                    _check(key.data)
                    key.data.clear()
                    begun = since.pop(key.fileobj)
                    found.append((begun, time.perf_counter() - begun))
                    idle.append(key.fileobj)
    return found


def _next(sock: socket.socket, what: bytes, left: Iterator[int]) -> int:
    """Send one more request, if there is one: how many were sent."""
    if next(left, None) is None:
        return 0
    sock.sendall(what)
    return 1


def _received(sock: socket.socket) -> bytes:
    data = sock.recv(1 << 18)
    if not data:
        raise SystemExit("the server closed a connection")
    return data


def _complete(answer: bytearray) -> bool:
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = answer[:end].lower()
    at = head.find(b"content-length:")
    length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
    return len(answer) >= end + 4 + length


def _check(answer: bytearray) -> None:
    if answer[9:10] != b"2":
        raise SystemExit(f"the server answered {bytes(answer[:500])!r}")


def _nothing() -> Iterable[tuple[selectors.SelectorKey, int]]:
    raise SystemExit(f"no answer in {LIMIT_S:g} s")
