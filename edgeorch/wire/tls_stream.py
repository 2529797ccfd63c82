"""TLS over a TCP connection, in fewer steps than ``trio.SSLStream`` over ``trio.SocketStream`` takes."""

import os
import ssl
from abc import abstractmethod
from operator import index

import trio
from trio.abc import Stream

MAX_READ = 65536
MAX_UNASKED = 1 << 16
"""Bytes that TLS itself wants to say before a peer that makes it say more is given up."""


class PromptStream(Stream):
    """A stream that can send in its caller's turn."""

    @abstractmethod
    def send_now(self, data: bytes | bytearray | memoryview) -> bool:
        """Send what goes without waiting; whether nothing is left for ``drain``.

        Raises:
            trio.BrokenResourceError: the connection broke.
            trio.ClosedResourceError: it was closed here.
        """

    @abstractmethod
    async def drain(self) -> None:
        """Send the rest; raises as ``send_now`` does."""


class TlsStream(PromptStream):
    """One side of a TLS connection, good after ``do_handshake``.

    Trio's streams try to read first, let other tasks run after each try that gave something, and guard reader
    and writer from each other, who may each have to do the other's work. On a link there is hardly ever
    something to read yet, and nearly always room to send: this one waits before it reads, and sends before
    it waits. Since TLS 1.3 reading never has to wait for sending.

    Messages carry their own end, so an end without ``close_notify`` is an end, and none is sent.

    Args:
        tcp: the connection.
        context: of either side.
        server_side: whether this is the side that was dialled.

    Attributes:
        tls: tells what the handshake has found out.
    """

    def __init__(self, tcp: trio.SocketStream, context: ssl.SSLContext, *, server_side: bool) -> None:
        self._tcp = tcp
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._unsent = b""

    async def do_handshake(self) -> None:
        """Agree on keys; raises ``trio.BrokenResourceError``, with what TLS says as its cause.

        What a server has to say at the end (session tickets) goes with the first data: the other side may
        have left by then, and its reset would take away what it was sent before.
        """
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._push()
                await self.drain()
                await self._fetch()
            except ssl.SSLError as error:
                raise trio.BrokenResourceError from error
            else:
                break
        if self.tls.server_side:
            self._unsent = self._outgoing.read()
        else:
            self._push()
            await self.drain()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has come, at most ``max_bytes``; empty at the end.

        Raises:
            ValueError: ``max_bytes`` is below 1.
            trio.BrokenResourceError: the connection broke.
            trio.ClosedResourceError: it was closed here.
        """
        limit = MAX_READ if max_bytes is None else index(max_bytes)
        if limit < 1:
            raise ValueError("max_bytes must be >= 1")
        if self._incoming.pending or self.tls.pending() or self._incoming.eof:
            await self._look()
        else:
            await self._fetch()
        while (data := self._decrypted(limit)) is None:
            await self._fetch()
        return data

    def send_now(self, data: bytes | bytearray | memoryview) -> bool:
        """See ``PromptStream``."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.tls.write(view) :]
            except ssl.SSLError as error:
                raise trio.BrokenResourceError from error
        return self._push()

    async def drain(self) -> None:
        """See ``PromptStream``."""
        while self._unsent:
            await trio.lowlevel.wait_writable(self._descriptor())
            self._push()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it."""
        await self._look()
        if not self.send_now(data):
            await self.drain()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room for more."""
        await self.drain()
        await self._tcp.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._tcp.aclose()

    def _descriptor(self) -> int:
        descriptor = self._tcp.socket.fileno()
        if descriptor < 0:
            raise trio.ClosedResourceError
        return descriptor

    async def _look(self) -> None:
        """Let others run; then the connection must not have been closed."""
        await trio.lowlevel.checkpoint()
        self._descriptor()

    async def _fetch(self) -> None:
        """Wait for bytes and hand them to TLS."""
        while True:
            if self._tcp.socket.fileno() < 0:
                await self._look()
            await trio.lowlevel.wait_readable(self._descriptor())
            try:
                data = os.read(self._descriptor(), MAX_READ)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(f"socket connection broken: {error}") from error
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
            return

    def _decrypted(self, limit: int) -> bytes | None:
        """What TLS has for us; None before a whole record has come."""
        try:
            data = self.tls.read(limit)
        except ssl.SSLWantReadError:
            data = None
        except ssl.SSLError as error:
            if self._incoming.eof:
                return b""
            raise trio.BrokenResourceError from error
        if self._outgoing.pending and not self._push() and len(self._unsent) > MAX_UNASKED:
            # A new key is to be answered with a new key.
            raise trio.BrokenResourceError("the peer asks for keys but does not read")
        return data

    def _push(self) -> bool:
        """Send what TLS has made of it as far as the socket has room; whether that was all."""
        self._unsent += self._outgoing.read()
        if self._unsent:
            try:
                self._unsent = self._unsent[os.write(self._descriptor(), self._unsent) :]
            except BlockingIOError:
                return False
            except OSError as error:
                raise trio.BrokenResourceError(f"socket connection broken: {error}") from error
        return not self._unsent
