"""Tasks and events of the whole fleet, read at any node: its own from disk, others over the wire."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import structlog
import trio

from edgeorch.dispatch.gather import newest
from edgeorch.dispatch.ledger import Ledger
from edgeorch.dispatch.requests import TaskPage
from edgeorch.dispatch.view import View
from edgeorch.errors import (
    EdgeorchError,
    NodeUnreachableError,
    NotFoundError,
    OriginUnreachableError,
    WireError,
)
from edgeorch.model import Caller, Event, Task, origin_of
from edgeorch.store import TaskFilter
from edgeorch.wire import Peers
from edgeorch.wire.messages import (
    CancelTask,
    FollowEvents,
    GetTask,
    Happened,
    ListTasks,
    Message,
    TaskFound,
    TasksFound,
    WaitTask,
)

log = structlog.get_logger()

ASK_S = 5.0
LIST_S = 3.0
EVENTS_AT_ONCE = 200


class Reader:
    """Answers questions about tasks."""

    def __init__(self, ledger: Ledger, view: View, peers: Peers) -> None:
        self.ledger = ledger
        self.view = view
        self.peers = peers

    async def local(self, task_id: str, caller: Caller) -> Task:
        """A task of this origin.

        Raises:
            NotFoundError: no such task, or it belongs to another token and the caller may see only its own.
        """
        entry = self.ledger.open.get(task_id)
        task = entry.saved if entry else self.ledger.recent.get(task_id)
        task = task or await self.ledger.store.task(task_id)
        if task is None or not may_see(caller, task):
            raise NotFoundError(f"no task {task_id!r}", hint="ended tasks are kept for store.retention_s")
        return task

    async def task(self, task_id: str, caller: Caller) -> Task:
        """A task of the fleet."""
        origin = self.origin(task_id)
        if origin == self.view.node_id:
            return await self.local(task_id, caller)
        request = GetTask(caller=self.forwarded(caller), task_id=task_id)
        return await self.ask_origin(origin, task_id, request, ASK_S)

    async def wait(self, task_id: str, caller: Caller, seconds: float) -> Task:
        """The task once it has ended, or as it is after ``seconds``."""
        origin = self.origin(task_id)
        if origin != self.view.node_id:
            request = WaitTask(caller=self.forwarded(caller), task_id=task_id, wait_s=seconds)
            return await self.ask_origin(origin, task_id, request, seconds + ASK_S)
        task = await self.local(task_id, caller)
        return await self.until(task, seconds, lambda now: now.state.terminal)

    async def until(self, task: Task, seconds: float, done: Callable[[Task], bool]) -> Task:
        """A task of this origin once ``done`` holds, or as it is after ``seconds``."""
        entry = self.ledger.open.get(task.id)
        if entry is None:
            return task
        with trio.move_on_after(seconds):
            while not done(entry.saved):
                await entry.changed.wait()
        return entry.saved

    async def tasks(self, which: TaskFilter, caller: Caller, *, local: bool) -> TaskPage:
        """Tasks of this origin or of all that answer, newest first."""
        if caller.role == "submit":
            which = msgspec.structs.replace(which, owner=caller.token)

        async def ask(node: str) -> tuple[list[Task], bool] | None:
            answer = await self._list(node, which, caller)
            if answer is None:
                return None
            # A node speaks for its own tasks only.
            return [task for task in answer.tasks if task.id.endswith(f"-{node}")], answer.more

        own = await self.ledger.store.tasks(which)
        peers = () if local else self.view.membership.snapshot().values()
        page = await newest(own, peers, ask, which.limit)
        return TaskPage(tasks=page.rows, unreachable=page.unreachable, more=page.more)

    async def children(self, task_id: str, caller: Caller) -> tuple[Task, ...]:
        """The children of a task, oldest first."""
        await self.task(task_id, caller)
        which = TaskFilter(parent=task_id, limit=10_000)
        origin = self.origin(task_id)
        if origin == self.view.node_id:
            return tuple(reversed(await self.ledger.store.tasks(which)))
        request = ListTasks(caller=self.forwarded(caller), which=which)
        answer: TasksFound = await self._ask(origin, request, ASK_S)
        return tuple(reversed(answer.tasks))

    @asynccontextmanager
    async def events(
        self, task_id: str | None, caller: Caller, after: int
    ) -> AsyncGenerator[AsyncIterator[Event]]:
        """Events after a number, then live ones."""
        origin = self.view.node_id if task_id is None else self.origin(task_id)
        if origin == self.view.node_id:
            if task_id is not None:
                await self.local(task_id, caller)
            async with aclosing(self._events(task_id, caller, after)) as events:
                yield events
            return
        await self.task(str(task_id), caller)
        request = FollowEvents(caller=self.forwarded(caller), task_id=task_id, after=after)
        async with (
            self.peers.stream(origin, request) as messages,
            aclosing(_only_events(messages)) as events,
        ):
            yield events

    def origin(self, task_id: str) -> str:
        """The id of the node that owns a task.

        Raises:
            NotFoundError: the text is not a task id.
        """
        try:
            return origin_of(task_id)
        except ValueError as error:
            raise NotFoundError(str(error), hint="a task id looks like ULID-NODEID") from None

    def forwarded(self, caller: Caller) -> Caller:
        """The caller as other nodes see it: checked here."""
        return msgspec.structs.replace(caller, via=self.view.node_id)

    async def ask_origin(self, origin: str, task_id: str, request: Message, seconds: float) -> Task:
        """A request to a task's origin that is answered with the task."""
        answer: TaskFound = await self._ask(origin, request, seconds)
        if answer.task is None:
            raise NotFoundError(f"no task {task_id!r}", hint="ended tasks are kept for store.retention_s")
        if answer.task.id != task_id:
            raise WireError(f"node {self.view.name_of(origin)} answered with another task than {task_id}")
        return answer.task

    async def cancel_there(self, origin: str, task_id: str, caller: Caller) -> Task:
        """Ask another origin to cancel."""
        request = CancelTask(caller=self.forwarded(caller), task_id=task_id)
        return await self.ask_origin(origin, task_id, request, ASK_S)

    async def _ask(self, origin: str, request: Message, seconds: float) -> Any:  # noqa: ANN401  see Peers.call
        name = self.view.name_of(origin)
        answer = None
        with trio.move_on_after(seconds):
            try:
                answer = await self.peers.call(origin, request)
            except NodeUnreachableError as error:
                raise OriginUnreachableError(
                    f"the task belongs to node {name}, which does not answer: {error.detail}",
                    hint="the task is safe there; ask again when the node is back",
                ) from None
        if answer is None:
            raise OriginUnreachableError(f"the task belongs to node {name}, which did not answer in time")
        return answer

    async def _list(self, node: str, which: TaskFilter, caller: Caller) -> TasksFound | None:
        answer: TasksFound | None = None
        with trio.move_on_after(LIST_S):
            try:
                answer = await self.peers.call(node, ListTasks(caller=self.forwarded(caller), which=which))
            except EdgeorchError as error:
                log.debug("a node did not list its tasks", node=node, reason=str(error))
        return answer

    async def _events(self, task_id: str | None, caller: Caller, after: int) -> AsyncGenerator[Event]:
        seen: dict[str, bool] = {}
        while True:
            happened = self.ledger.happened
            entry = self.ledger.open.get(task_id) if task_id else None
            ended = task_id is not None and (entry is None or entry.saved.state.terminal)
            events = await self.ledger.store.events(task_id, after, EVENTS_AT_ONCE)
            for event in events:
                after = event.seq
                if task_id is not None or await self._visible(event.task, caller, seen):
                    yield event
            if events:
                continue
            if ended:
                return
            await happened.wait()

    async def _visible(self, task_id: str, caller: Caller, seen: dict[str, bool]) -> bool:
        if caller.role != "submit":
            return True
        if task_id not in seen:
            task = await self.ledger.store.task(task_id)
            seen[task_id] = task is not None and may_see(caller, task)
        return seen[task_id]


async def _only_events(messages: AsyncIterator[Message]) -> AsyncGenerator[Event]:
    async for message in messages:
        if isinstance(message, Happened):
            yield message.event


def may_see(caller: Caller, task: Task) -> bool:
    """``submit`` sees its own tasks, ``read`` and ``admin`` all."""
    return caller.role in ("read", "admin") or (caller.role == "submit" and caller.token == task.caller.token)
