"""HTTP/1.1 as it leaves: one answer's ASGI messages as bytes.

An answer of known length is flushed once, with its end; a stream with each of its pieces.
"""

import http
import time
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum, auto
from functools import lru_cache
from wsgiref.handlers import format_date_time

from hypercorn.typing import ASGISendEvent

from edgeorch.rest.problems import PROBLEM_TYPE, Problem

FULL = 65_536
"""Bytes that are collected at most before they are flushed."""
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
_LINES = {one.value: f"HTTP/1.1 {one.value} {one.phrase}\r\n".encode() for one in http.HTTPStatus}


class Part(Enum):
    """What is to be sent next."""

    HEAD = auto()
    BODY = auto()
    NOTHING = auto()


class Reply:
    """The answer to one request.

    Args:
        flush: sends bytes, or loses them where the client is gone.
        stopping: whether the server is; then this is the connection's last answer.
        head_only: whether the request is a HEAD, whose answer has no body.
        version: of HTTP that the client speaks.
        keep_alive: whether the client wants the connection afterwards.

    Attributes:
        part: how far it is.
        keep_alive: whether the connection can go on after this answer.
    """

    def __init__(
        self,
        flush: Callable[[bytes], Awaitable[None]],
        stopping: Callable[[], bool],
        *,
        head_only: bool,
        version: str = "1.1",
        keep_alive: bool = False,
    ) -> None:
        self._flush = flush
        self._stopping = stopping
        self._head_only = head_only
        self._chunks_known = version != "1.0"
        self.keep_alive = keep_alive
        self.part = Part.HEAD
        self._out: list[bytes] = []
        self._unsent = 0
        self._left: int | None = None
        self._chunked = False
        self._bodiless = False

    async def send(self, message: ASGISendEvent) -> None:
        """Take an ASGI message of the application.

        Raises:
            RuntimeError: a defect of the application: out of turn, or not of the length it declared.
        """
        if message["type"] == "http.response.start" and self.part is Part.HEAD:
            self._begin(message["status"], message.get("headers", ()))
            if self._left is None:
                await self._send_out()
        elif message["type"] == "http.response.body" and self.part is Part.BODY:
            more = message.get("more_body", False)
            self._add(message.get("body", b""), more=more)
            if not more or self._left is None or self._unsent >= FULL:
                await self._send_out()
        else:
            raise RuntimeError(f"the application sent {message['type']} when it was {self.part}'s turn")

    async def refuse(self, problem: Problem) -> None:
        """Answer without the application and end the connection, where it is not too late."""
        self.keep_alive = False
        if self.part is not Part.HEAD:
            return
        body = problem.encoded()
        length = str(len(body)).encode()
        self._begin(problem.status, ((b"content-type", PROBLEM_TYPE.encode()), (b"content-length", length)))
        self._add(body, more=False)
        await self._send_out()

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.keep_alive = self.keep_alive and not self._stopping()
        lines, closes = [_LINES[status]], not self.keep_alive
        for name, value in headers:
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-length":
                self._left = int(value)
            elif name == b"connection":
                closes = False  # it is said already
                self.keep_alive = self.keep_alive and value.lower() != b"close"
        self._bodiless = self._head_only or status in {204, 304}
        if status in {204, 304}:
            self._left = self._left or 0
        elif self._left is None and self._chunks_known:
            self._chunked = not self._bodiless
            lines.append(b"transfer-encoding: chunked\r\n")
        elif self._left is None and not self._head_only:
            self.keep_alive, closes = False, True
        lines.append(_date(int(time.time())))
        if closes:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
            raise RuntimeError("a header of the answer has a line break in it")
        self._put(head + b"\r\n")
        self.part = Part.BODY

    def _add(self, data: bytes, *, more: bool) -> None:
        if not self._bodiless:
            if self._left is not None:
                self._left -= len(data)
                if self._left < 0 or (self._left and not more):
                    raise RuntimeError(f"the answer is not as long as it says: {-self._left:+} bytes")
            if data and self._chunked:
                self._put(b"%x\r\n%b\r\n" % (len(data), data))
            elif data:
                self._put(data)
            if self._chunked and not more:
                self._put(b"0\r\n\r\n")
        if not more:
            self.part = Part.NOTHING

    def _put(self, data: bytes) -> None:
        self._out.append(data)
        self._unsent += len(data)

    async def _send_out(self) -> None:
        # What waits for a client that does not read is not copied once more.
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self._unsent = 0
        if data:
            await self._flush(data)


@lru_cache(1)
def _date(second: int) -> bytes:
    return f"date: {format_date_time(second)}\r\n".encode("ascii")
