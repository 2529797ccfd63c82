"""Route of output: what a task printed."""

import base64
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from edgeorch.errors import EdgeorchError
from edgeorch.model import Written
from edgeorch.rest.backend import Backend
from edgeorch.rest.problems import problem_of
from edgeorch.rest.routes import NDJSON, Answer, Asked, Route, Shown, Sink
from edgeorch.rest.streaming import END, first_error, pumped, soon
from edgeorch.rest.tasks import task_id_of
from edgeorch.wire.messages import Chunk, FollowOutput, OutputEnd

RAW = "application/octet-stream"

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


class OutputRoutes:
    """Serves ``/api/v1/tasks/{id}/output``."""

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
            first = await soon(pieces)
            tail_only = (isinstance(first, Chunk) and first.tail) or (
                isinstance(first, OutputEnd) and first.why == "tail-only"
            )
            await sink.start({"Edgeorch-Output": "tail-only"} if tail_only else None)
            if first is END:
                return
            if first is not None:
                await show(first)
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
                        lines=OutputLine,
                        headers=("Edgeorch-Output",),
                    )
                },
                problems=(404, 503),
                query=OutputQuery,
                tag="tasks",
                description="``Edgeorch-Output: tail-only`` marks output of a node that is gone: the last "
                "64 KiB of each stream, which the origin kept.",
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
