"""Routes that stream: output of a task, events."""

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
import trio

from edgeorch.errors import EdgeorchError, InvalidRequestError
from edgeorch.model import Written
from edgeorch.rest.backend import Backend
from edgeorch.rest.problems import problem_of
from edgeorch.rest.routes import LAST_EVENT_ID, Answer, Asked, Route, Shown, Sink
from edgeorch.rest.tasks import task_id_of
from edgeorch.rest.views import EventDocument, event_document
from edgeorch.wire.messages import Chunk, FollowOutput, OutputEnd

T = TypeVar("T")

KEEP_ALIVE_S = 15.0
"""A comment goes out after this much silence, so that proxies and clients see a live stream of events."""
HEAD_WAIT_S = 0.25
"""How long the head waits to learn that only a tail is left, or that nothing more comes."""
HEAD_BYTES = 1 << 19
"""Two tails of the largest ``output.tail_bytes``: more than this is no tail."""
NDJSON = "application/x-ndjson"
RAW = "application/octet-stream"
SSE = "text/event-stream"


Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]


class OutputQuery(Written, frozen=True, kw_only=True):
    """Which output, and how."""

    stream: Literal["stdout", "stderr", "both"] = "both"
    follow: Annotated[bool, msgspec.Meta(description="Go on until the attempt has ended.")] = False
    tail: Annotated[
        Count | None, msgspec.Meta(description="Only the last lines, so many of each stream.")
    ] = None
    attempt: Annotated[Count | None, msgspec.Meta(description="Of this attempt; the newest if left out.")] = (
        None
    )
    offset: Annotated[
        int, msgspec.Meta(description="Start at this byte of each stream.", ge=0, le=1 << 62)
    ] = 0
    format: Annotated[
        Literal["raw", "ndjson"],
        msgspec.Meta(
            description="``ndjson``: a JSON object a line, ``{stream, offset, data}`` or ``data_b64`` where "
            "the bytes are not UTF-8; the last line has ``end`` instead."
        ),
    ] = "raw"


class OutputLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of ``format=ndjson``."""

    stream: Literal["stdout", "stderr", ""] = ""
    offset: int | None = None
    data: str | None = None
    data_b64: str | None = None
    label: str = ""
    """Node name, where the output of several nodes is mixed."""
    end: str = ""
    """Last line: ``ended``, ``tail-only``, ``not-following`` or ``error``."""
    problem: dict[str, Any] | None = None
    """With ``end: error``: problem details."""


class StreamRoutes:
    """Serves output and events."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def output(self, asked: Asked) -> Answer:
        """Output of one attempt, or of all children of a parent."""
        query: OutputQuery = asked.query
        request = FollowOutput(
            caller=asked.caller,
            task_id=task_id_of(asked),
            attempt=query.attempt,
            streams=("stdout", "stderr") if query.stream == "both" else (query.stream,),
            offset=query.offset,
            tail=query.tail,
            follow=query.follow,
        )
        if query.format == "ndjson":
            return Answer(media=NDJSON, play=lambda sink: self._play_lines(request, sink))
        return Answer(media=RAW, play=lambda sink: self._play_raw(request, sink))

    async def events(self, asked: Asked) -> Answer:
        """Events of one task, or of all tasks that this node accepted."""
        task_id = task_id_of(asked) if "id" in asked.path else None
        last = asked.headers.get("last-event-id", "0")
        if not (last.isascii() and last.isdigit() and len(last) <= 18):
            raise InvalidRequestError(f"Last-Event-ID must be a number, not {last[:40]!r}")

        async def play(sink: Sink) -> None:
            async with (
                self._backend.events(task_id, asked.caller, int(last)) as items,
                pumped(items) as events,
            ):
                item = await _soon(events)
                if item is _END and last != "0":
                    # WHATWG HTML §9.2: 204 tells a browser to stop coming back.
                    await sink.start(status=204)
                else:
                    await sink.start()
                    await sink.write(b": edgeorch\n\n")
                while item is not _END:
                    await sink.write(b": keep-alive\n\n" if item is None else _sse(item))
                    item = await _soon(events, KEEP_ALIVE_S)
                await sink.end()

        return Answer(media=SSE, play=play)

    async def _play_raw(self, request: FollowOutput, sink: Sink) -> None:
        plain = Prefixed()

        async def show(piece: Chunk | OutputEnd) -> None:
            if isinstance(piece, Chunk) and (data := plain.feed(piece)):
                await sink.write(data)

        await self._show_each(request, sink, show)
        if rest := plain.rest():
            await sink.write(rest)
        await sink.end()

    async def _play_lines(self, request: FollowOutput, sink: Sink) -> None:
        problem: EdgeorchError | None = None
        try:
            await self._show_each(request, sink, lambda piece: sink.write(_line(piece)))
        except* EdgeorchError as group:
            problem = first_error(group)
        if problem is not None:
            # Before the head this becomes an ordinary problem response, which is better.
            if not sink.started:
                raise problem
            shown = msgspec.json.decode(problem_of(problem).encoded())
            await sink.write(msgspec.json.encode(OutputLine(end="error", problem=shown)) + b"\n")
        await sink.end()

    async def _show_each(
        self, request: FollowOutput, sink: Sink, show: Callable[[Chunk | OutputEnd], Awaitable[None]]
    ) -> None:
        """Show every piece, after the head, which says whether only a tail is left."""
        async with self._backend.output(request) as items, pumped(items) as pieces:
            early: list[Chunk | OutputEnd] = []
            size = 0
            with trio.move_on_after(HEAD_WAIT_S):
                async for piece in pieces:
                    early.append(piece)
                    size += len(piece.data) if isinstance(piece, Chunk) else 0
                    if size > HEAD_BYTES:
                        break
            last = early[-1] if early else None
            tail_only = isinstance(last, OutputEnd) and last.why == "tail-only"
            await sink.start({"Edgeorch-Output": "tail-only"} if tail_only else None)
            for piece in early:
                await show(piece)
            async for piece in pieces:
                await show(piece)

    def routes(self) -> tuple[Route, ...]:
        """The table."""
        return (
            Route(
                "GET",
                "/api/v1/tasks/{id}/output",
                "readOutput",
                "read",
                self.output,
                "What a task printed, wherever it ran",
                {
                    200: Shown(
                        "Raw bytes, both streams as they came; or lines of JSON with ``format=ndjson``. "
                        "Lines of several nodes start with the node's name.",
                        media=RAW,
                        headers=("Edgeorch-Output",),
                    )
                },
                problems=(404, 503),
                query=OutputQuery,
                tag="tasks",
                description="``Edgeorch-Output: tail-only`` marks output of a node that is gone: the last "
                "64 KiB of each stream, which the origin kept.",
            ),
            *(
                Route(
                    "GET",
                    path,
                    name,
                    "read",
                    self.events,
                    summary,
                    {
                        200: Shown("A stream of events.", EventDocument, SSE),
                        204: Shown("Nothing comes after Last-Event-ID: the task has ended."),
                    },
                    problems=(404, 503),
                    headers=(LAST_EVENT_ID,),
                    tag="tasks",
                )
                for path, name, summary in (
                    ("/api/v1/tasks/{id}/events", "followTask", "Events of a task, until it has ended"),
                    ("/api/v1/events", "followTasks", "Events of all tasks that this node accepted"),
                )
            ),
        )


class Prefixed:
    """Chunks as raw bytes; those of several nodes line by line, each with its node's name before it."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], bytes] = {}

    def feed(self, chunk: Chunk) -> bytes:
        """What can be shown now."""
        if not chunk.label:
            return chunk.data
        key = (chunk.label, chunk.stream)
        *lines, rest = (self._open.pop(key, b"") + chunk.data).split(b"\n")
        if rest:
            self._open[key] = rest
        return b"".join(_prefixed(chunk.label, line) for line in lines)

    def rest(self) -> bytes:
        """Last lines that never got their end."""
        return b"".join(_prefixed(label, line) for (label, _), line in self._open.items())


def _prefixed(label: str, line: bytes) -> bytes:
    return label.encode() + b" | " + line + b"\n"


@asynccontextmanager
async def pumped(items: AsyncIterator[T]) -> AsyncIterator["trio.MemoryReceiveChannel[T]"]:
    """Items by a channel, because waiting for an iterator cannot be given up without ending the iterator."""
    send, receive = trio.open_memory_channel[T](0)

    async def pump() -> None:
        async for item in items:
            await send.send(item)
        # Only a good end closes the channel: an error must not look like one, it cancels who waits.
        send.close()

    async with send, receive, trio.open_nursery() as nursery:
        nursery.start_soon(pump)
        yield receive
        nursery.cancel_scope.cancel()


_END: Any = object()


async def _soon(channel: "trio.MemoryReceiveChannel[Any]", seconds: float = HEAD_WAIT_S) -> Any:  # noqa: ANN401
    """The next item, None after this much silence, or ``_END``."""
    with trio.move_on_after(seconds):
        try:
            return await channel.receive()
        except trio.EndOfChannel:
            return _END
    return None


def first_error(group: BaseExceptionGroup[EdgeorchError]) -> EdgeorchError:
    """The first expected error in a group of them."""
    for error in group.exceptions:
        return first_error(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("groups are never empty")


def _line(piece: Chunk | OutputEnd) -> bytes:
    if isinstance(piece, OutputEnd):
        return msgspec.json.encode(OutputLine(end=piece.why)) + b"\n"
    try:
        line = OutputLine(
            stream=piece.stream, offset=piece.offset, data=piece.data.decode(), label=piece.label
        )
    except UnicodeDecodeError:
        text = base64.b64encode(piece.data).decode()
        line = OutputLine(stream=piece.stream, offset=piece.offset, data_b64=text, label=piece.label)
    return msgspec.json.encode(line) + b"\n"


def _sse(event: Any) -> bytes:  # noqa: ANN401  what the pump gives
    data = msgspec.json.encode(event_document(event))
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.type.encode(), data)
