"""Routes of tasks: submit, list, read, cancel."""

import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import msgspec
import trio
from werkzeug.exceptions import ClientDisconnected

from edgeorch.errors import NotFoundError
from edgeorch.model import (
    CROCKFORD,
    NODE_ID_LENGTH,
    Caller,
    Task,
    TaskSpec,
    TaskState,
    Written,
    origin_of,
)
from edgeorch.rest.backend import Backend, Idempotency, Submission
from edgeorch.rest.decode import NOT_EMPTY, submissions_of
from edgeorch.rest.routes import (
    IDEMPOTENCY_KEY,
    PREFER,
    Answer,
    Asked,
    Route,
    Shown,
    answer,
    key_of,
)
from edgeorch.rest.views import (
    RankingDocument,
    RankingsDocument,
    TaskDocument,
    TaskPageDocument,
    TasksDocument,
    page_document,
    ranking_document,
    task_document,
)
from edgeorch.store import TaskFilter
from edgeorch.timing import Histogram, clock

MAX_WAIT_S = 3600.0
UNWATCHED_S = 1.0
"""Whether a client is still there is asked of those only whose answer takes longer: it costs a task."""
TASK_ID = f"^([{CROCKFORD}]{{26}}-[{CROCKFORD}]{{{NODE_ID_LENGTH}}})?$"
"""A task id or nothing."""
_WAIT = re.compile(
    r'(?:^|[,;])\s*wait\s*=\s*"?(?P<seconds>\d{1,9}(?:\.\d{1,9})?)"?\s*(?=[,;]|$)', re.IGNORECASE
)


class SubmitQuery(Written, frozen=True, kw_only=True):
    """How to submit."""

    dry_run: Annotated[bool, msgspec.Meta(description="Answer the ranking and keep nothing.")] = False


class ListQuery(Written, frozen=True, kw_only=True):
    """Which tasks to list."""

    state: Annotated[tuple[TaskState, ...], msgspec.Meta(description="Any of these states.")] = ()
    name: Annotated[str, msgspec.Meta(description="Tasks of this name.", max_length=128)] = ""
    node: Annotated[
        str,
        msgspec.Meta(description="Tasks whose newest attempt is on this node (id or name).", max_length=128),
    ] = ""
    parent: Annotated[str, msgspec.Meta(description="Children of this task.", pattern=TASK_ID)] = ""
    limit: Annotated[int, msgspec.Meta(description="At most so many.", ge=1, le=1000)] = 100
    cursor: Annotated[str, msgspec.Meta(description="Where the page before ended.", pattern=TASK_ID)] = ""
    local: Annotated[bool, msgspec.Meta(description="Only tasks that this node accepted.")] = False


class TaskRoutes:
    """Serves ``/api/v1/tasks``."""

    def __init__(self, backend: Backend, decoded: Histogram) -> None:
        self._backend = backend
        self._decoded = decoded

    async def submit(self, asked: Asked) -> Answer:
        """Accept one spec or a list of them, or explain what would be chosen."""
        begun = clock()
        submissions, batch = submissions_of(asked.body)
        self._decoded.since(begun)
        key = key_of(asked.headers)
        if asked.query.dry_run:
            return await self._explain(submissions, batch=batch, caller=asked.caller)
        idempotency = Idempotency(key=key, body=hashlib.sha256(asked.body).digest()) if key else None
        tasks = await self._backend.submit(submissions, asked.caller, idempotency)
        seconds = wait_of(asked)
        if seconds is not None:
            ids = [task.id for task in tasks]
            tasks = await _while_here(asked, seconds, lambda left: self._wait(ids, asked.caller, left))
        ended = seconds is not None and all(task.state.terminal for task in tasks)
        headers = {} if seconds is None else {"Preference_Applied": f"wait={seconds:g}"}
        shown = tuple(task_document(task, asked.caller) for task in tasks)
        if batch:
            return answer(TasksDocument(tasks=shown), 200 if ended else 202, **headers)
        return answer(shown[0], 200 if ended else 202, Location=f"/api/v1/tasks/{shown[0].id}", **headers)

    async def page(self, asked: Asked) -> Answer:
        """A page of tasks."""
        query: ListQuery = asked.query
        which = TaskFilter(
            states=query.state,
            name=query.name or None,
            node=self._backend.node(query.node).peer.info.id if query.node else None,
            parent=query.parent or None,
            before=query.cursor or None,
            limit=query.limit,
        )
        page = await self._backend.tasks(which, asked.caller, local=query.local)
        return answer(page_document(page, asked.caller, query.limit))

    async def read(self, asked: Asked) -> Answer:
        """One task; ``Prefer: wait`` waits for its end."""
        task_id = task_id_of(asked)
        seconds = wait_of(asked)
        if seconds is None:
            return answer(task_document(await self._backend.task(task_id, asked.caller), asked.caller))
        (task,) = await _while_here(asked, seconds, lambda left: self._wait([task_id], asked.caller, left))
        return answer(task_document(task, asked.caller), Preference_Applied=f"wait={seconds:g}")

    async def cancel(self, asked: Asked) -> Answer:
        """Begin to cancel."""
        task = await self._backend.cancel(task_id_of(asked), asked.caller)
        return answer(task_document(task, asked.caller), 202)

    async def _explain(self, submissions: list[Submission], *, batch: bool, caller: Caller) -> Answer:
        rankings = [
            ranking_document(await self._backend.explain(submission.spec, caller))
            for submission in submissions
        ]
        return answer(RankingsDocument(rankings=tuple(rankings)) if batch else rankings[0])

    async def _wait(self, ids: Sequence[str], caller: Caller, seconds: float) -> tuple[Task, ...]:
        until = trio.current_time() + seconds
        return tuple(
            [
                await self._backend.wait(task_id, caller, max(0.0, until - trio.current_time()))
                for task_id in ids
            ]
        )

    def routes(self) -> tuple[Route, ...]:
        """The table."""
        return (
            Route(
                "POST",
                "/api/v1/tasks",
                "submitTask",
                "submit",
                self.submit,
                "Submit a task, or a list of tasks in one transaction",
                {
                    202: Shown("Accepted: it survives a crash of this node.", (TaskDocument, TasksDocument)),
                    200: Shown(
                        "With ``Prefer: wait``: ended. With ``dry_run``: the ranking.",
                        (TaskDocument, TasksDocument, RankingDocument, RankingsDocument),
                    ),
                },
                problems=(403, 422, 507, 503),
                query=SubmitQuery,
                headers=(IDEMPOTENCY_KEY, PREFER),
                body=TaskSpec | Annotated[list[TaskSpec], NOT_EMPTY],
                tag="tasks",
            ),
            Route(
                "GET",
                "/api/v1/tasks",
                "listTasks",
                "read",
                self.page,
                "Tasks of the fleet, newest first",
                {200: Shown("A page.", TaskPageDocument)},
                problems=(404,),
                query=ListQuery,
                tag="tasks",
                description="``submit`` tokens see their own tasks only.",
            ),
            Route(
                "GET",
                "/api/v1/tasks/{id}",
                "readTask",
                "read",
                self.read,
                "One task, whichever node accepted it",
                {200: Shown("The task.", TaskDocument)},
                problems=(404, 503),
                headers=(PREFER,),
                tag="tasks",
            ),
            Route(
                "DELETE",
                "/api/v1/tasks/{id}",
                "cancelTask",
                "submit",
                self.cancel,
                "Cancel a task",
                {202: Shown("It is being cancelled, or has ended already.", TaskDocument)},
                problems=(404, 503, 507),
                tag="tasks",
            ),
        )


def task_id_of(asked: Asked) -> str:
    """The id in the path.

    Raises:
        NotFoundError: it cannot be one.
    """
    task_id = asked.path["id"]
    try:
        origin_of(task_id)
    except ValueError:
        raise NotFoundError(f"there is no task {task_id!r}", hint="`edgeorch tasks` lists them") from None
    return task_id


async def _while_here(
    asked: Asked, seconds: float, wait: Callable[[float], Awaitable[tuple[Task, ...]]]
) -> tuple[Task, ...]:
    """What ``wait`` gives once all have ended or time is over; who goes away meanwhile wants no answer."""
    tasks = await wait(min(seconds, UNWATCHED_S))
    if seconds <= UNWATCHED_S or all(task.state.terminal for task in tasks):
        return tasks
    async with asked.watched():
        return await wait(seconds - UNWATCHED_S)
    raise ClientDisconnected


def wait_of(asked: Asked) -> float | None:
    """The seconds of ``Prefer: wait``, an hour at most; None without one that can be read (RFC 7240)."""
    found = _WAIT.search(asked.headers.get("prefer", ""))
    return min(float(found["seconds"]), MAX_WAIT_S) if found else None
