"""HTTP/1.1 as it arrives: heads and chunks read by llhttp, one request at a time.

A parser is made for each request and given that request's bytes alone: where one ends and the next begins is
found here, so nothing that a parser keeps can reach over. What llhttp lets pass and we do not is refused in
``_checked``. ``Upgrade`` headers are ignored, as RFC 9110 §7.8 allows.
"""

import re
from collections import deque
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from hypercorn.typing import ASGIReceiveEvent, HTTPScope

HEAD_MAX = 16_384
"""Bytes of a request's head, and of what stands between two pieces of a chunked body."""
_END = b"\r\n\r\n"
_ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_TARGET = re.compile(rb"/[\x21-\x7e]*")
_LONE_LF = re.compile(rb"(?<!\r)\n")
_ONCE = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))


class BadRequestError(Exception):
    """What has arrived is not HTTP/1.1, or more of it than is taken."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class Call:
    """One request, as the application sees it.

    Attributes:
        scope: the ASGI scope.
        events: ASGI events that wait to be received.
        complete: whether its last byte has arrived.
        keep_alive: whether the client wants the connection afterwards.
        declared: bytes that the body has; 0 where it does not say.
        hesitates: whether the client waits to be told to go on (``Expect: 100-continue``).
    """

    def __init__(self, scope: HTTPScope, head: "_Head", *, keep_alive: bool) -> None:
        self.scope = scope
        self.events: deque[ASGIReceiveEvent] = deque()
        self.keep_alive = keep_alive
        self.declared = int(head.once.get(b"content-length", b"0"))
        expects = head.once.get(b"expect", b"").lower()
        self.hesitates = scope["http_version"] == "1.1" and expects == b"100-continue"
        self.complete = False


class _Head:
    """Takes what llhttp finds: a head, then the data of chunks."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.once: dict[bytes, bytes] = {}
        self.twice = b""
        self.closes = False
        self.read = False
        self.data = b""
        self.complete = False

    def on_url(self, target: bytes) -> None:
        self.target = target

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.read:  # a trailer
            return
        name, value = name.lower(), value.strip(b" \t")
        self.headers.append((name, value))
        if name in _ONCE:
            if name in self.once:
                self.twice = name
            self.once[name] = value
        elif name == b"connection" and b"close" in value.lower().replace(b" ", b"").split(b","):
            self.closes = True

    def on_headers_complete(self) -> None:
        self.read = True

    def on_body(self, data: bytes) -> None:
        self.data += data

    def on_message_complete(self) -> None:
        self.complete = True


class Reader:
    """Reads the requests of one connection.

    Attributes:
        scheme, client, server: go into the scope of each request.
        call: the request under way; None between two.
        head_only: whether it is a HEAD, also where it is refused.
    """

    scheme = "http"
    client: tuple[str, int] | None = None
    server: tuple[str, int] | None = None
    head_only = False

    def __init__(self) -> None:
        self._data = b""
        self._left = 0
        self._chunks: tuple[HttpRequestParser, _Head] | None = None
        self._between = 0
        self.call: Call | None = None

    @property
    def unparsed(self) -> int:
        """Bytes that have arrived and are not read yet."""
        return len(self._data)

    @property
    def complete(self) -> bool:
        """Whether a request has arrived to its last byte and is not done yet."""
        return self.call is not None and self.call.complete

    def received(self, data: bytes) -> None:
        """Keep bytes for ``advance``."""
        self._data = self._data + data if self._data else data

    def done(self) -> None:
        """The request is answered; what comes now is the next one."""
        self.call = None
        self.head_only = False

    def advance(self) -> None:
        """Read what has arrived, up to the end of one request.

        Raises:
            BadRequestError: it cannot be read.
        """
        if self.call is None:
            end = self._data.find(_END) + len(_END)
            if end < len(_END):
                self._check_beginning()
                return
            self.call = self._begun(end)
        if not self.call.complete:
            self._read_body(self.call)

    def _check_beginning(self) -> None:
        """Of a head that is not here to its end: say soon that it will not become one."""
        data = self._data
        if len(data) > HEAD_MAX:
            raise BadRequestError("the head of the request is too long", 431)
        if data and not data[:1].isupper():
            raise BadRequestError("a request begins with its method, in capitals")
        if _LONE_LF.search(data):
            raise BadRequestError("lines end with CR and LF")

    def _begun(self, end: int) -> Call:
        if end > HEAD_MAX:
            raise BadRequestError("the head of the request is too long", 431)
        head = _Head()
        parser = HttpRequestParser(head)
        data, self._data = self._data[:end], self._data[end:]
        self.head_only = data.startswith(b"HEAD ")
        try:
            parser.feed_data(data)
        except HttpParserUpgrade:
            if b"transfer-encoding" in head.once:
                raise BadRequestError("an upgrade with a chunked body is not taken") from None
        except HttpParserError as error:
            raise BadRequestError(str(error)) from None
        method: str = parser.get_method().decode("ascii")
        path, query, version = _checked(head, method, data)
        scope: Any = {
            "type": "http",
            "http_version": version,
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": method,
            "scheme": self.scheme,
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": self.client,
            "server": self.server,
            "state": {},
            "extensions": {},
        }
        call = Call(scope, head, keep_alive=version == "1.1" and not head.closes)
        self._left = call.declared
        self._chunks = (parser, head) if b"transfer-encoding" in head.once else None
        self._between = 0
        return call

    def _read_body(self, call: Call) -> None:
        if self._chunks is not None:
            piece = self._dechunked(*self._chunks)
            call.complete = self._chunks[1].complete
        else:
            piece = self._data[: self._left]
            self._data = self._data[len(piece) :]
            self._left -= len(piece)
            call.complete = self._left == 0
        if piece or call.complete:
            call.events.append({"type": "http.request", "body": piece, "more_body": not call.complete})

    def _dechunked(self, parser: HttpRequestParser, found: _Head) -> bytes:
        """The data of the chunks that have arrived. Given line by line, because a body ends with a line."""
        data, at = self._data, 0
        pieces = []
        try:
            while at < len(data) and not found.complete:
                start, at = at, data.find(b"\n", at) + 1 or len(data)
                parser.feed_data(data[start:at])
                if found.data:
                    pieces.append(found.data)
                    found.data = b""
                    self._between = 0
                else:
                    self._between += at - start
                    if self._between > HEAD_MAX:
                        raise BadRequestError("too much between the chunks of the body")
        except HttpParserError as error:
            raise BadRequestError(str(error)) from None
        self._data = data[at:]
        return b"".join(pieces)


def _checked(head: _Head, method: str, data: bytes) -> tuple[bytes, bytes, str]:
    """Path, query and version of a request, if it has one of each thing that may be there once.

    llhttp takes other versions, blanks and empty lines around what it wants, and more than one Host.

    Raises:
        BadRequestError: it has not.
    """
    line = b"%b %b HTTP/1." % (method.encode(), head.target)
    version = {b"0\r": "1.0", b"1\r": "1.1"}.get(data[len(line) : len(line) + 2])
    if version is None or not data.startswith(line) or not head.read:
        raise BadRequestError("the first line must be METHOD TARGET HTTP/1.1")
    if head.twice:
        raise BadRequestError(f"{head.twice.decode()} is there twice")
    host = head.once.get(b"host")
    if host is None and version == "1.1":
        raise BadRequestError("there is no Host header")
    if not _may_be_host(host or b""):
        raise BadRequestError("the Host header is not a host")
    coding = head.once.get(b"transfer-encoding", b"chunked")
    if coding.lower() != b"chunked":
        raise BadRequestError("Transfer-Encoding can only be chunked", 501)
    if b"transfer-encoding" in head.once and (version == "1.0" or b"content-length" in head.once):
        raise BadRequestError("Transfer-Encoding cannot be here")
    target = head.target
    if absolute := _ABSOLUTE.match(target):
        target = target[absolute.end() :]
        target = target if target.startswith(b"/") else b"/" + target
    if not _TARGET.fullmatch(target):
        raise BadRequestError("the request's target must be a path")
    path, _, query = target.partition(b"?")
    return path, query, version


@lru_cache(64)
def _may_be_host(host: bytes) -> bool:
    """Whether it is one (RFC 9112 §3.2); a name of impossible length would make routing raise."""
    try:
        host.partition(b":")[0].decode("latin-1").lower().encode("idna")
    except UnicodeError:
        return False
    return True
