"""A node in memory behind the REST API: accepts tasks and runs nothing; a test says what becomes of them."""

import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Literal

import msgspec
import trio

from edgeorch.errors import ConflictError, ForbiddenError, KeyReusedError, NotFoundError
from edgeorch.model import (
    Attempt,
    AttemptState,
    Caller,
    Event,
    NodeInfo,
    Peer,
    PeerState,
    Ranked,
    Sample,
    Score,
    Task,
    TaskSpec,
    TaskState,
    ulid,
)
from edgeorch.rest.backend import AuditPage, Idempotency, NodeView, Submission, TaskPage
from edgeorch.store import AuditFilter, PutAudit, TaskFilter
from edgeorch.wire.messages import Chunk, FollowOutput, OutputEnd

OWN_ID = "0123456789"
WALL = 1_700_000_000.0


def node_view(node_id: str, name: str, *, is_self: bool = False) -> NodeView:
    """A live node with 4 slots."""
    info = NodeInfo(
        id=node_id,
        name=name,
        fleet="test",
        version="1",
        arch="amd64",
        os="linux",
        cpus=4,
        memory=8 << 30,
        drivers={"native": "1"},
        labels={"zone": "kitchen"},
        addresses=("192.0.2.1",),
        cert_expires_at=WALL + 86_400 * 30,
    )
    sample = Sample(
        at=WALL,
        cpu_busy=0.1,
        cpu_mhz=2000,
        cpus=4,
        load1=0.1,
        memory_total=8 << 30,
        memory_available=4 << 30,
        disk_free=1 << 30,
        slots=4,
        slots_used=1,
    )
    peer = Peer(info=info, state=PeerState.ALIVE, since=WALL, sample=sample)
    return NodeView(peer=peer, score=Score(value=1.0, reasons=("idle",)), is_self=is_self)


class MemoryBackend:
    """``rest.backend.Backend`` in memory.

    Attributes:
        known: tasks by id.
        accepts: whether a target accepts what is submitted at once.
        ends: whether what is accepted has ended at once.
        printed: output of every task, and how it ends.
        records: the audit trail.
        happened: events, numbered from 1; ``tell`` adds one.
        wrong: what ``ready`` says.
        raises: raised by ``submit``, where set.
    """

    def __init__(self) -> None:
        self.known: dict[str, Task] = {}
        self.accepts = True
        self.ends = False
        self.printed: list[Chunk] = []
        self.end: str | None = "ended"
        self.happened: list[Event] = []
        self.ended: set[str | None] = set()
        self.wrong: dict[str, str] = {"store": "", "membership": ""}
        self.raises: Exception | None = None
        self.records: list[PutAudit] = []
        self.submitted = 0
        self.streams = 0
        self._keys: dict[tuple[str, str], tuple[bytes, tuple[str, ...]]] = {}
        self._views = {
            OWN_ID: node_view(OWN_ID, "one", is_self=True),
            "2222222222": node_view("2222222222", "two"),
        }
        self._changed = trio.Event()
        self._rng = random.Random(1)  # noqa: S311  ids of a test

    def put(self, task: Task) -> None:
        """Change a task and wake who waits."""
        self.known[task.id] = task
        self._wake()

    def tell(self, event: Event) -> None:
        """Add an event."""
        self.happened.append(msgspec.structs.replace(event, seq=len(self.happened) + 1))
        self._wake()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something about this backend to come true."""
        while not holds():
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def submit(
        self, submissions: Sequence[Submission], caller: Caller, idempotency: Idempotency | None = None
    ) -> tuple[Task, ...]:
        """Keep the tasks."""
        if self.raises is not None:
            raise self.raises
        if idempotency is not None:
            body, ids = self._keys.get((caller.token, idempotency.key), (idempotency.body, ()))
            if body != idempotency.body:
                raise KeyReusedError("the key was used with another body")
            if ids:
                return tuple(self.known[one] for one in ids)
        tasks = tuple(self._accept(submission, caller) for submission in submissions)
        if idempotency is not None:
            self._keys[caller.token, idempotency.key] = (
                idempotency.body,
                tuple(task.id for task in tasks),
            )
        return tasks

    def _accept(self, submission: Submission, caller: Caller) -> Task:
        self.submitted += 1
        attempt = Attempt(
            number=1,
            node=OWN_ID,
            node_name="one",
            state=AttemptState.RUNNING,
            driver="native",
            offered_at=WALL,
            started_at=WALL,
        )
        state = TaskState.RUNNING if self.accepts else TaskState.WAITING
        if self.ends:
            state = TaskState.SUCCEEDED
        task = Task(
            id=ulid(WALL + self.submitted, self._rng.getrandbits(80), OWN_ID),
            name=submission.spec.name,
            state=state,
            reason="" if self.accepts else "no node has a free slot",
            origin=OWN_ID,
            caller=caller,
            created_at=WALL,
            spec=submission.raw,
            attempts=(attempt,) if self.accepts else (),
            service_id=self.submitted if submission.service_id else None,
        )
        self.put(task)
        return task

    async def explain(self, spec: TaskSpec, caller: Caller) -> tuple[Ranked, ...]:  # noqa: ARG002
        """Every node, itself first."""
        return tuple(
            Ranked(node=view.peer.info.id, node_name=view.peer.info.name, driver="native", score=view.score)
            for view in self._views.values()
        )

    async def task(self, task_id: str, caller: Caller) -> Task:
        """A known task."""
        task = self.known.get(task_id)
        if task is None or (caller.role == "submit" and task.caller.token != caller.token):
            raise NotFoundError(f"there is no task {task_id}")
        return task

    async def wait(self, task_id: str, caller: Caller, seconds: float) -> Task:
        """Until it has ended."""
        task = await self.task(task_id, caller)
        with trio.move_on_after(seconds):
            while not task.state.terminal:
                await self._changed.wait()
                task = await self.task(task_id, caller)
        return task

    async def wait_placed(self, task_id: str, seconds: float) -> Task:
        """Until it has an attempt."""
        with trio.move_on_after(seconds):
            while not self.known[task_id].attempts and not self.known[task_id].state.terminal:
                await self._changed.wait()
        return self.known[task_id]

    async def tasks(self, which: TaskFilter, caller: Caller, *, local: bool) -> TaskPage:
        """Matching tasks, newest first; another node never answers."""
        found = [
            task
            for task in sorted(self.known.values(), key=lambda task: task.id, reverse=True)
            if (not which.states or task.state in which.states)
            and which.name in (None, task.name)
            and which.parent in (None, task.parent)
            and (which.before is None or task.id < which.before)
            and (which.node is None or (task.current is not None and task.current.node == which.node))
            and (caller.role != "submit" or task.caller.token == caller.token)
        ]
        return TaskPage(tasks=tuple(found[: which.limit]), unreachable=() if local else ("two",))

    async def children(self, task_id: str, caller: Caller) -> tuple[Task, ...]:  # noqa: ARG002
        """Children of a task."""
        return tuple(task for task in self.known.values() if task.parent == task_id)

    async def cancel(self, task_id: str, caller: Caller) -> Task:
        """Cancelled at once."""
        task = await self.task(task_id, caller)
        if not task.state.terminal:
            task = msgspec.structs.replace(
                task, state=TaskState.CANCELLED, ended_at=WALL, reason="cancelled before it ran"
            )
            self.put(task)
        return task

    def output(self, request: FollowOutput) -> AbstractAsyncContextManager[AsyncIterator[Chunk | OutputEnd]]:
        """What was printed, then the end or silence."""
        return self._output(request)

    @asynccontextmanager
    async def _output(self, request: FollowOutput) -> AsyncGenerator[AsyncIterator[Chunk | OutputEnd]]:
        await self.task(request.task_id, request.caller)
        self.streams += 1
        self._wake()

        async def pieces() -> AsyncGenerator[Chunk | OutputEnd]:
            sent = 0
            while True:
                for chunk in self.printed[sent:]:
                    sent += 1
                    if chunk.stream in request.streams:
                        yield chunk
                if self.end is not None or not request.follow:
                    break
                await self._changed.wait()
            if self.raises is not None:
                raise self.raises
            yield OutputEnd(why=self.end or "not-following")

        try:
            async with aclosing(pieces()) as iterator:
                yield iterator
        finally:
            self.streams -= 1
            self._wake()

    def print(self, *chunks: Chunk, end: str | None = None) -> None:
        """Add output; ``end`` ends it."""
        self.printed += chunks
        self.end = end
        self._wake()

    def events(
        self, task_id: str | None, caller: Caller, after: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Events, until the task is in ``ended``."""
        return self._events(task_id, caller, after)

    @asynccontextmanager
    async def _events(
        self, task_id: str | None, caller: Caller, after: int
    ) -> AsyncGenerator[AsyncIterator[Event]]:
        if task_id is not None:
            await self.task(task_id, caller)

        async def live() -> AsyncGenerator[Event]:
            seen = after
            while True:
                for event in self.happened[seen:]:
                    seen = event.seq
                    if task_id in (None, event.task):
                        yield event
                if task_id in self.ended:
                    return
                await self._changed.wait()

        async with aclosing(live()) as iterator:
            yield iterator

    def nodes(self) -> tuple[NodeView, ...]:
        """Two nodes."""
        return tuple(self._views.values())

    def node(self, name_or_id: str) -> NodeView:
        """One of them."""
        for view in self._views.values():
            if name_or_id in (view.peer.info.id, view.peer.info.name) or (
                name_or_id == "self" and view.is_self
            ):
                return view
        raise NotFoundError(f"there is no node {name_or_id!r}")

    async def change_node(
        self, name_or_id: str, action: Literal["drain", "cordon", "resume"], caller: Caller
    ) -> NodeView:
        """Changed at once."""
        if not caller.may("admin"):
            raise ForbiddenError("needs admin")
        view = self.node(name_or_id)
        states: dict[str, Literal["ready", "cordoned", "draining"]] = {
            "drain": "draining",
            "cordon": "cordoned",
            "resume": "ready",
        }
        info = msgspec.structs.replace(view.peer.info, state=states[action])
        changed = msgspec.structs.replace(view, peer=msgspec.structs.replace(view.peer, info=info))
        self._views[info.id] = changed
        return changed

    async def forget(self, name_or_id: str, caller: Caller) -> None:  # noqa: ARG002
        """Both are alive."""
        raise ConflictError(f"the node {self.node(name_or_id).peer.info.name!r} is alive")

    async def audited(self, which: AuditFilter, caller: Caller, *, local: bool) -> AuditPage:  # noqa: ARG002
        """Matching records, newest first; another node never answers."""
        found = sorted(self.records, key=lambda record: record.id, reverse=True)
        found = [
            one for one in found if one.at >= which.since and (not which.before or one.id < which.before)
        ]
        return AuditPage(
            records=tuple(found[: which.limit]),
            names={OWN_ID: "one", "2222222222": "two"},
            unreachable=() if local else ("two",),
            more=len(found) > which.limit,
        )

    def ready(self) -> Mapping[str, str]:
        """As told."""
        return self.wrong

    def statistics(self) -> Mapping[str, Any]:
        """How many tasks."""
        return {"tasks": len(self.known)}
