"""One connection of the daemon to its runner: requests with answers, posts without, pushed exits."""

import itertools
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import trio

from edgeorch.runner import protocol
from edgeorch.runner.protocol import Reply, Request

LATER_S = 0.02
"""What may wait goes with what is sent next, and alone after this."""


class LinkLostError(Exception):
    """The runner is gone or spoke nonsense; whether a request was carried out is unknown."""


class NobodyListensError(LinkLostError):
    """There is no runner behind the socket's path."""


@dataclass
class _Question:
    answers: list[Reply] = field(default_factory=list)
    complete: bool = False
    over: trio.Event = field(default_factory=trio.Event)


class RunnerLink:
    """A connected socket.

    Args:
        sock: connected and non-blocking.
        on_exited: gets each pushed exit, in order with the answers around it.
    """

    def __init__(self, sock: socket.socket, on_exited: Callable[[protocol.Exited], None]) -> None:
        self._sock = sock
        self._on_exited = on_exited
        self._inbox = protocol.replies()
        self._numbers = itertools.count(1)
        self._questions: dict[int, _Question] = {}
        self._unsent = bytearray()
        self._blocked = trio.Event()
        self._later = bytearray()
        self._some_later = trio.Event()
        self._welcomed = trio.Event()
        self._welcome: protocol.Welcome | None = None
        self.lost = ""
        """Why the link is lost; empty while it stands."""

    @classmethod
    def connect(cls, path: Path, on_exited: Callable[[protocol.Exited], None]) -> "RunnerLink":
        """Connect to a runner's socket; that never waits.

        Raises:
            LinkLostError: nobody listens there (``NobodyListensError``), or this user may not connect.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            absent = isinstance(error, FileNotFoundError | ConnectionRefusedError)
            kind = NobodyListensError if absent else LinkLostError
            raise kind(f"no runner answers at {path}: {error.strerror or error}") from None
        return cls(sock, on_exited)

    async def run(self) -> None:
        """Serve until the link is lost."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._send_later)
                reason = await self._read()
                nursery.cancel_scope.cancel()
            self.lost = reason
        finally:
            self._send(b"")
            self.lost = self.lost or "the connection to the runner was closed"
            self._sock.close()
            self._welcomed.set()
            for question in self._questions.values():
                question.over.set()

    async def welcome(self) -> protocol.Welcome:
        """The runner's first message.

        Raises:
            LinkLostError: the runner closed the connection instead.
        """
        await self._welcomed.wait()
        if self._welcome is None:
            raise LinkLostError(self.lost)
        return self._welcome

    def post(self, message: Request) -> None:
        """Send without waiting for anything; nothing happens on a lost link.

        Raises:
            FrameError: the message is too large.
        """
        self._send(protocol.encode(message))

    def post_later(self, message: Request) -> None:
        """As ``post``, but it may wait for what is sent next: a system call less here, and a turn less there.

        Raises:
            FrameError: the message is too large.
        """
        self._later += protocol.encode(message)
        self._some_later.set()

    def _send(self, frame: bytes) -> None:
        if self._later:
            frame = bytes(self._later) + frame
            self._later.clear()
        if self.lost:
            return
        if not self._unsent:
            try:
                frame = frame[self._sock.send(frame) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # the reader finds the end of the link
        if frame:
            self._unsent += frame
            self._blocked.set()

    async def ask(self, build: Callable[[int], Request]) -> list[Reply]:
        """Send the request that ``build`` makes of a number; its answers, of which only a list has several.

        Raises:
            LinkLostError: no answer will come.
            FrameError: the message is too large.
        """
        number = next(self._numbers)
        question = self._questions[number] = _Question()
        try:
            self.post(build(number))
            if not self.lost:
                await question.over.wait()
        finally:
            del self._questions[number]
        if not question.complete:
            raise LinkLostError(self.lost)
        return question.answers

    async def _send_later(self) -> NoReturn:
        while True:
            await self._some_later.wait()
            self._some_later = trio.Event()
            await trio.sleep(LATER_S)
            if self._later:
                self._send(b"")

    async def _write(self) -> NoReturn:
        while True:
            await self._blocked.wait()
            self._blocked = trio.Event()
            while self._unsent:
                await trio.lowlevel.wait_writable(self._sock)
                try:
                    del self._unsent[: self._sock.send(self._unsent)]
                except BlockingIOError:
                    continue
                except OSError:
                    self._unsent.clear()  # the reader finds the end of the link

    async def _read(self) -> str:
        """Take messages until the link is lost, and say why it is."""
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data = self._sock.recv(65_536)
            except BlockingIOError:
                continue
            except OSError as error:
                return f"the connection to the runner broke: {error.strerror}"
            if not data:
                return "the runner closed the connection"
            try:
                for message in self._inbox.feed(data):
                    if isinstance(message, protocol.Failed) and message.id == protocol.UNASKED:
                        return message.detail
                    self._take(message)
            except protocol.FrameError as error:
                return f"the runner speaks another protocol: {error}"

    def _take(self, message: Reply) -> None:
        match message:
            case protocol.Exited():
                self._on_exited(message)
            case protocol.Welcome():
                self._welcome = message
                self._welcomed.set()
            case _:
                question = self._questions.get(message.id)
                if question is not None:
                    question.answers.append(message)
                    question.complete = not (isinstance(message, protocol.Listed) and message.more)
                    if question.complete:
                        question.over.set()
