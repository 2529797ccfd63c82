"""Routes of events: Server-Sent Events (WHATWG HTML §9.2)."""

import msgspec

from edgeorch.errors import InvalidRequestError
from edgeorch.model import Event
from edgeorch.rest.backend import Backend
from edgeorch.rest.routes import LAST_EVENT_ID, SSE, Answer, Asked, Route, Shown, Sink
from edgeorch.rest.streaming import END, pumped, soon
from edgeorch.rest.tasks import task_id_of
from edgeorch.rest.views import EventDocument, event_document

KEEP_ALIVE_S = 15.0
"""A comment goes out after this much silence, so that proxies and clients see a live stream."""


class EventRoutes:
    """Serves ``/api/v1/events`` and ``/api/v1/tasks/{id}/events``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

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
                item = await soon(events)
                if item is END and last != "0":
                    # 204 tells a browser to stop coming back.
                    await sink.start(status=204)
                else:
                    await sink.start()
                    await sink.write(b": edgeorch\n\n")
                while item is not END:
                    await sink.write(b": keep-alive\n\n" if item is None else _sse(item))
                    item = await soon(events, KEEP_ALIVE_S)
                await sink.end()

        return Answer(media=SSE, play=play)

    def routes(self) -> tuple[Route, ...]:
        """The table."""
        return tuple(
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
        )


def _sse(event: Event) -> bytes:
    data = msgspec.json.encode(event_document(event))
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.type.encode(), data)
