"""Streams of output and events that go on after a broken connection, and waiting by events."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeVar

import msgspec

from edgeorch.client.answers import Event, Output, Task
from edgeorch.client.calls import Problem, task, task_path
from edgeorch.client.steps import Call, Emit, Open, Pause, Read, Steps
from edgeorch.errors import EdgeorchError, NodeUnreachableError, UnavailableError

RESUME_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)

T = TypeVar("T")
Which = Literal["stdout", "stderr", "both"]


class _Line(msgspec.Struct, frozen=True):
    """One line of the ndjson form of output; the last one has no stream and says why nothing more comes."""

    stream: Literal["stdout", "stderr", ""] = ""
    offset: int = 0
    data: str | None = None
    data_b64: bytes = b""
    label: str = ""
    problem: Problem | None = None


@dataclass
class OutputCursor:
    """What has been seen of a task's output.

    Offsets are per stream and attempt. A resumed stream starts where the less advanced one stands, and what
    was already seen of the other is dropped here, so nothing comes twice and nothing is left out.
    """

    task_id: str
    which: Which = "both"
    follow: bool = False
    tail: int | None = None
    attempt: int | None = None
    _seen: dict[tuple[str, str], int] = field(default_factory=dict)

    def call(self) -> Call:
        """The request that goes on from here."""
        params = {"format": "ndjson", "stream": self.which}
        if self.follow:
            params["follow"] = "true"
        if self.attempt is not None:
            params["attempt"] = str(self.attempt)
        if self.tail is not None and not self._seen:
            params["tail"] = str(self.tail)
        if start := self._start():
            params["offset"] = str(start)
        return Call("GET", task_path(self.task_id, "/output"), params=params)

    def feed(self, line: bytes) -> Output | None:
        """One line of the answer, as what is new in it.

        Raises:
            EdgeorchError: what the node says has gone wrong meanwhile.
        """
        if not line.strip():
            return None
        got = _decoded(line, _Line)
        if got.problem:
            raise got.problem.error()
        if not got.stream:
            return None
        data = got.data_b64 if got.data is None else got.data.encode()
        place = (got.label, got.stream)
        known = self._seen.get(place, got.offset)
        fresh = data[max(0, known - got.offset) :]
        offset = got.offset + len(data) - len(fresh)
        self._seen[place] = max(known, got.offset + len(data))
        if not fresh:
            return None
        return Output(stream=got.stream, offset=offset, data=fresh, label=got.label, attempt=self.attempt)

    def next_attempt(self, task: Task) -> bool:
        """Move on to a newer attempt of the task, where there is one; its output starts anew."""
        newest = task.current
        if newest is None or newest.number == self.attempt:
            return False
        if self.attempt is not None:
            self.tail = None
        self.attempt = newest.number
        self._seen.clear()
        return True

    def printing(self, task: Task) -> bool:
        """Whether there is an attempt, or children, whose output can be asked for."""
        return bool(task.attempts) or task.mode != "best"

    def settled(self, task: Task) -> bool:
        """Whether the attempt that is followed can print nothing more."""
        newest = task.current
        return task.ended or (newest is not None and newest.number != self.attempt)

    def _start(self) -> int:
        streams = ("stdout", "stderr") if self.which == "both" else (self.which,)
        labels = {label for label, _ in self._seen}
        if labels != {""}:
            return 0
        return min(self._seen.get(("", stream), 0) for stream in streams)


@dataclass
class EventCursor:
    """What has been seen of a stream of events (Server-Sent Events, WHATWG HTML §9.2)."""

    task_id: str | None = None
    last_id: str = ""
    _fields: dict[bytes, bytes] = field(default_factory=dict)

    def call(self) -> Call:
        """The request that goes on from here."""
        headers = {"accept": "text/event-stream"}
        if self.last_id:
            headers["last-event-id"] = self.last_id
        self._fields.clear()
        path = task_path(self.task_id, "/events") if self.task_id else "/api/v1/events"
        return Call("GET", path, headers=headers)

    def feed(self, line: bytes) -> Event | None:
        """One line; an empty one completes an event. Our events have one line of data each."""
        line = line.rstrip(b"\r")
        if line:
            name, _, value = line.partition(b":")
            self._fields[name] = value.removeprefix(b" ")
            return None
        fields = dict(self._fields)
        self._fields.clear()
        if b"data" not in fields:
            return None
        self.last_id = fields.get(b"id", self.last_id.encode()).decode(errors="replace")
        document = _decoded(fields[b"data"], _EventDocument)
        kind = document.type or fields.get(b"event", b"message").decode(errors="replace")
        return Event(id=self.last_id, type=kind, task=document.task, at=document.at, data=document.data)


class _EventDocument(msgspec.Struct, frozen=True):
    type: str = ""
    task: str = ""
    at: datetime | None = None
    data: dict[str, Any] = {}


class Patience:
    """How long to wait before a broken stream is taken up again, and when to give up."""

    def __init__(self) -> None:
        self._left = list(RESUME_PAUSES_S)

    def reset(self) -> None:
        """The stream brought something: start anew."""
        self._left = list(RESUME_PAUSES_S)

    def next_pause(self, error: UnavailableError) -> float:
        """Seconds to wait; raises the error when it has lasted too long."""
        if not self._left:
            raise error
        return self._left.pop(0) * random.uniform(1.0, 1.3)  # noqa: S311  jitter, no secret


class Lines:
    """Bytes as they come to whole lines. Only a line feed ends one: JSON text may hold U+2028."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return lines


def until(task_id: str, enough: Callable[[Task], bool]) -> Steps[Task]:
    """The task once it is as wanted, or has ended. Looked at after each of its events, never polled."""
    cursor, patience = EventCursor(task_id), Patience()
    while True:
        found = yield from task(task_id)
        if enough(found) or found.ended:
            return found
        problem: UnavailableError = NodeUnreachableError("the node closed the stream", hint="is it stopping?")
        try:
            yield Open(cursor.call())
            lines = Lines()
            while chunk := (yield Read()):
                events = [event for line in lines.feed(chunk) if (event := cursor.feed(line))]
                if any(event.type != "progress" for event in events):
                    patience.reset()
                    found = yield from task(task_id)
                    if enough(found) or found.ended:
                        return found
        except UnavailableError as error:
            problem = error
        yield Pause(patience.next_pause(problem))


def follow_events(cursor: EventCursor) -> Steps[None]:
    """Emits events: a task's until it has ended, or those of all tasks for ever."""
    patience = Patience()
    while True:
        try:
            yield Open(cursor.call())
            lines = Lines()
            while chunk := (yield Read()):
                for event in filter(None, map(cursor.feed, lines.feed(chunk))):
                    patience.reset()
                    yield Emit(event)
        except UnavailableError as error:
            yield Pause(patience.next_pause(error))
        else:
            return


def read_output(cursor: OutputCursor) -> Steps[None]:
    """Emits what there is of a task's output, once."""
    yield Open(cursor.call())
    yield from _pieces(cursor, Patience())


def follow_output(cursor: OutputCursor) -> Steps[None]:
    """Emits output until nothing more can come: over broken connections, and to newer attempts."""
    pinned = cursor.attempt is not None
    if not pinned:
        cursor.next_attempt((yield from until(cursor.task_id, cursor.printing)))
    patience = Patience()
    while True:
        try:
            yield Open(cursor.call())
            yield from _pieces(cursor, patience)
        except UnavailableError as error:
            yield Pause(patience.next_pause(error))
            continue
        if pinned:
            return
        found = yield from task(cursor.task_id)
        if not cursor.settled(found):
            found = yield from until(cursor.task_id, cursor.settled)
            # The node stopped sending before the attempt ended: what came after that is read now.
            yield Open(cursor.call())
            yield from _pieces(cursor, patience)
        if not cursor.next_attempt(found):
            return


def _pieces(cursor: OutputCursor, patience: Patience) -> Steps[None]:
    lines = Lines()
    while chunk := (yield Read()):
        for piece in filter(None, map(cursor.feed, lines.feed(chunk))):
            patience.reset()
            yield Emit(piece)


def _decoded(document: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(document, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EdgeorchError(f"the node's stream cannot be understood: {error}") from None
