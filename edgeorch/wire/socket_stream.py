"""A TCP connection under TLS, in fewer steps than Trio's own stream takes."""

import os
from operator import index

import trio
from trio.abc import Stream

MAX_READ = 65536


class WaitingStream(Stream):
    """Waits before it reads.

    ``trio.SocketStream`` tries to read first, and lets other tasks run after each try that gave something. On
    a link there is hardly ever something to read yet: the first try is a system call and an exception for
    nothing, and the wait has let others run.

    Args:
        tcp: the connection; everything else is left to it.
    """

    def __init__(self, tcp: trio.SocketStream) -> None:
        self._tcp = tcp

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
        while True:
            descriptor = self._tcp.socket.fileno()
            if descriptor < 0:
                await trio.lowlevel.checkpoint()
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(descriptor)
            try:
                return os.read(descriptor, limit)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(f"socket connection broken: {error}") from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it."""
        await self._tcp.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room for more."""
        await self._tcp.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._tcp.aclose()
