"""The output of any task, asked at any node: from files here, from the target, or what the origin kept.

A request goes to the task's origin, which knows the attempts; the origin reads from the target of each. Where
the target does not answer any more, the origin still has the last part of each stream.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import trio

from edgeorch.dispatch.ledger import Ledger
from edgeorch.dispatch.reading import Reader
from edgeorch.dispatch.view import View
from edgeorch.errors import NodeUnreachableError, NotFoundError, OriginUnreachableError
from edgeorch.executor.executor import Executor
from edgeorch.model import Attempt, AttemptState, Handle, Task, TaskSpec
from edgeorch.output import Watcher, folder_of, follow
from edgeorch.wire import Peers
from edgeorch.wire.messages import Chunk, FollowOutput, Message, OutputEnd

Piece: TypeAlias = Chunk | OutputEnd
StreamName: TypeAlias = Literal["stdout", "stderr"]


class Outputs:
    """Reads output.

    Args:
        roots: folders that hold attempts' folders (``KEY/stdout``), one per driver.
        watcher: tells when files grow.
    """

    def __init__(self, roots: Sequence[Path], watcher: Watcher) -> None:
        self.roots = tuple(roots)
        self.watcher = watcher

    def bind(self, ledger: Ledger, view: View, reader: Reader, peers: Peers) -> None:
        """The rest of dispatch."""
        self.ledger = ledger
        self.view = view
        self.reader = reader
        self.peers = peers

    def attach(self, executor: Executor) -> None:
        """The executor, which knows what still runs."""
        self.executor = executor

    @asynccontextmanager
    async def of_fleet(self, request: FollowOutput) -> AsyncGenerator[AsyncIterator[Piece]]:
        """Output of a task of any origin; ends with one ``OutputEnd``.

        Raises:
            NotFoundError: no such task or attempt, on entering.
            OriginUnreachableError: on entering.
        """
        task = await self.reader.task(request.task_id, request.caller)
        known = {attempt.number for attempt in task.attempts}
        if request.attempt is not None and request.attempt not in known:
            raise NotFoundError(
                f"task {task.id} has no attempt {request.attempt}",
                hint=f"known: {', '.join(map(str, sorted(known))) or 'none yet'}",
            )
        if task.origin == self.view.node_id:
            async with self._from_origin(request, task) as pieces:
                yield pieces
            return
        forwarded = msgspec.structs.replace(request, caller=self.reader.forwarded(request.caller))
        try:
            async with (
                self.peers.stream(task.origin, forwarded) as messages,
                aclosing(_pieces(messages)) as pieces,
            ):
                yield pieces
        except NodeUnreachableError as error:
            raise OriginUnreachableError(str(error)) from None

    @asynccontextmanager
    async def of_run(self, request: FollowOutput) -> AsyncGenerator[AsyncIterator[Piece]]:
        """Output of one attempt that runs or ran on this node."""
        key = f"{request.task_id}.{request.attempt}"
        life = self.executor.lives().get(key)
        ended: trio.Event | None = None
        if life is not None and request.follow:
            ended = life.ended
            await life.begun.wait()
        folder = self._folder(key, life.run.handle if life else None)
        if folder is None:
            if life is None:
                raise NotFoundError(f"no output of {key} is kept here", hint="old output is removed")
            wanted: dict[StreamName, Path] = {}
        else:
            wanted = {name: folder / name for name in request.streams}
        async with (
            follow(
                wanted, watcher=self.watcher, ended=ended, offset=request.offset, tail_lines=request.tail
            ) as found,
            aclosing(_chunks(found)) as chunks,
        ):
            yield chunks

    def _folder(self, key: str, handle: Handle | None) -> Path | None:
        """The folder of an attempt's output; None where it has none."""
        if handle is not None:
            return Path(handle.stdout).parent
        try:
            return next((one for root in self.roots if (one := folder_of(root, key)).is_dir()), None)
        except ValueError:
            return None  # a peer asked for something that is no attempt

    @trio.as_safe_channel
    async def _from_origin(self, request: FollowOutput, task: Task) -> AsyncGenerator[Piece]:
        """What is asked of a task of this origin: an attempt, the newest and later ones, or its children."""
        parts = self._of_children(request, task) if is_parent(task) else self._of_attempts(request, task)
        async with parts as pieces:
            async for piece in pieces:
                yield piece

    @trio.as_safe_channel
    async def _of_attempts(self, request: FollowOutput, task: Task) -> AsyncGenerator[Piece]:
        last, why = 0, "not-started"
        while True:
            attempt = _choose(task, request.attempt, last)
            if attempt is not None:
                last = attempt.number
                async with self._of_attempt(request, task, attempt) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, OutputEnd):
                            why = piece.why
                        else:
                            yield piece
                request = msgspec.structs.replace(request, offset=0, tail=None)
            if request.attempt is not None or not request.follow:
                break
            task = await self._later(task, last)
            if _choose(task, None, last) is None:
                break
        yield OutputEnd(why=why)

    @trio.as_safe_channel
    async def _of_attempt(self, request: FollowOutput, task: Task, attempt: Attempt) -> AsyncGenerator[Piece]:
        """From the target, or, where it does not answer, the end that the origin kept."""
        caller = self.reader.forwarded(request.caller)
        asked = msgspec.structs.replace(request, attempt=attempt.number, caller=caller)
        sent = False
        try:
            async with self._stream_of(attempt.node, asked) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Chunk):
                        sent = True
                        yield msgspec.structs.replace(piece, attempt=attempt.number)
        except (NodeUnreachableError, NotFoundError):
            if attempt.silent:
                yield OutputEnd(why="ended")
                return
            for tail in () if sent else _tails(request, task, attempt):
                yield tail
            yield OutputEnd(why="tail-only")
        else:
            yield OutputEnd(why="ended")

    def _stream_of(
        self, node: str, asked: FollowOutput
    ) -> AbstractAsyncContextManager[AsyncIterator[Piece | Message]]:
        """The target's own files, or the way to them."""
        return self.of_run(asked) if node == self.view.node_id else self.peers.stream(node, asked)

    async def _later(self, task: Task, last: int) -> Task:
        """The task once it has ended or has an attempt after ``last``."""
        entry = self.ledger.open.get(task.id)
        if entry is None:
            return await self.ledger.store.task(task.id) or task
        while not entry.saved.state.terminal and _choose(entry.saved, None, last) is None:
            await entry.changed.wait()
        return entry.saved

    @trio.as_safe_channel
    async def _of_children(self, request: FollowOutput, task: Task) -> AsyncGenerator[Piece]:
        """The children's output mixed as it comes, each piece with its node's name."""
        entry = self.ledger.open.get(task.id)
        while request.follow and entry and not entry.children and not entry.saved.state.terminal:
            await entry.changed.wait()
        send, receive = trio.open_memory_channel[Chunk](0)
        async with trio.open_nursery() as nursery:
            async with send:
                for child in await self.ledger.store.children(task.id):
                    nursery.start_soon(self._label, request, child, send.clone())
            async with receive:
                async for chunk in receive:
                    yield chunk
        yield OutputEnd(why="ended")

    async def _label(self, request: FollowOutput, child: Task, send: trio.MemorySendChannel[Chunk]) -> None:
        label = self.view.name_of(decode(child).placement.node or "")
        asked = msgspec.structs.replace(request, task_id=child.id)
        async with send, self._from_origin(asked, child) as pieces:
            async for piece in pieces:
                if isinstance(piece, Chunk):
                    await send.send(msgspec.structs.replace(piece, label=label, tail=False))


def decode(task: Task) -> TaskSpec:
    """A task's spec; it was valid when it was accepted."""
    return msgspec.json.decode(task.spec, type=TaskSpec)


def is_parent(task: Task) -> bool:
    """Whether the task runs on several nodes through children."""
    return task.parent is None and decode(task).placement.mode != "best"


def _tails(request: FollowOutput, task: Task, attempt: Attempt) -> list[Chunk]:
    """What the origin kept with the result."""
    if task.attempts[-1].number != attempt.number:
        return []
    kept: dict[StreamName, bytes] = {"stdout": task.stdout_tail, "stderr": task.stderr_tail}
    return [
        Chunk(stream=name, offset=0, data=kept[name], attempt=attempt.number, tail=True)
        for name in request.streams
        if kept[name]
    ]


async def _pieces(messages: AsyncIterator[Message]) -> AsyncGenerator[Piece]:
    async for message in messages:
        if isinstance(message, Chunk | OutputEnd):
            yield message


async def _chunks(found: AsyncIterator[tuple[StreamName, int, bytes]]) -> AsyncGenerator[Piece]:
    async for name, offset, data in found:
        yield Chunk(stream=name, offset=offset, data=data)


def _choose(task: Task, number: int | None, last: int) -> Attempt | None:
    """The asked attempt, or the newest after ``last`` that may have output."""
    silent = (AttemptState.REFUSED, AttemptState.OFFERED)
    for attempt in reversed(task.attempts):
        if number is not None and attempt.number == number:
            return attempt
        if number is None and attempt.number > last and attempt.state not in silent:
            return attempt
    return None
