"""All of dispatch in one object: what REST asks, what other nodes ask, and what runs in the background."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal

import structlog
import trio

from edgeorch.config import Config
from edgeorch.dispatch.accept import Acceptor
from edgeorch.dispatch.audit import CANCEL, FORGET, Audit
from edgeorch.dispatch.children import Parents
from edgeorch.dispatch.choose import Membership
from edgeorch.dispatch.entry import Entry
from edgeorch.dispatch.leases import Leases
from edgeorch.dispatch.ledger import Ledger, Notifier
from edgeorch.dispatch.nodes import NodeChanges, Nodes
from edgeorch.dispatch.origins import Reporter
from edgeorch.dispatch.outputs import Outputs
from edgeorch.dispatch.place import Placer
from edgeorch.dispatch.reading import Reader
from edgeorch.dispatch.reconcile import Reconciler
from edgeorch.dispatch.requests import AuditPage, Idempotency, NodeView, Submission, TaskPage
from edgeorch.dispatch.view import View
from edgeorch.errors import InvalidRequestError
from edgeorch.executor.admission import Rules
from edgeorch.executor.executor import Executor
from edgeorch.model import Caller, Event, Ranked, Task, TaskSpec, TaskState
from edgeorch.seams import Seams
from edgeorch.store import AuditFilter, LocalStore, TaskFilter
from edgeorch.store.sealing import Sealer
from edgeorch.wire import Peers
from edgeorch.wire.messages import Chunk, FollowOutput, OutputEnd

log = structlog.get_logger()

PLACED = (TaskState.RUNNING,)


class Dispatch:
    """Accepts tasks, places them, follows their attempts.

    Build it, give ``reporter`` to the executor and the executor to ``attach``, then ``start`` it.

    Args:
        config: the node's settings.
        store: this node's database.
        sealer: encrypts secrets for it.
        membership: the other nodes.
        me: this node's own facts, which ``nodes.NodeChanges`` can change.
        peers: ways to other nodes.
        notifier: makes status callbacks.
        rules: the node's policy.
        outputs: reads the output of attempts that ran here.
        nursery: for short tasks of dispatch (offers, retries); outlives the listeners.
        seams: clocks and chance.
    """

    def __init__(
        self,
        config: Config,
        *,
        store: LocalStore,
        sealer: Sealer,
        membership: Membership,
        me: NodeChanges,
        peers: Peers,
        notifier: Notifier,
        rules: Rules,
        outputs: Outputs,
        nursery: trio.Nursery,
        seams: Seams,
    ) -> None:
        self.config = config
        self.store = store
        self.peers = peers
        self.seams = seams
        self.ledger = Ledger(store, sealer, notifier, seams)
        self.ledger.deadline_s = rules.deadline_s
        self.view = View(me, membership, self.ledger.books, config.scoring, seams)
        self.reporter = Reporter(self.ledger, self.view, peers, nursery.start_soon)
        self.reader = Reader(self.ledger, self.view, peers)
        self.audit = Audit(store, self.view, peers, seams)
        self.nodes_part = Nodes(self.view, me, peers)
        self.outputs = outputs
        outputs.bind(self.ledger, self.view, self.reader, peers)
        self._rules = rules
        self._nursery = nursery
        self.checks: Callable[[], Mapping[str, str]] = dict
        """Check name to what is wrong; the node fills it in."""

    def attach(self, executor: Executor) -> None:
        """The executor of this node, which was given ``reporter``."""
        self.executor = executor
        lease = self.config.lease
        self.placer = Placer(
            self.ledger,
            self.view,
            executor=executor,
            peers=self.peers,
            lease=lease,
            rules=self._rules,
            nursery=self._nursery,
            seams=self.seams,
        )
        self.leases = Leases(
            self.ledger,
            self.view,
            executor=executor,
            peers=self.peers,
            lease=lease,
            nursery=self._nursery,
            seams=self.seams,
        )
        self.parents = Parents(self.ledger, self.leases, self._nursery)
        self.ledger.on_end = self._ended
        self.acceptor = Acceptor(self.ledger, self.view, self.placer, self._rules, self.audit)
        self.reconciler = Reconciler(self.ledger, self.view, self.placer, self.leases, self.peers)
        self.outputs.attach(executor)

    async def start(self, start_executor: Callable[[], Any]) -> None:
        """Take up what was open, start the executor, then place what waits.

        Args:
            start_executor: starts the executor in its nursery and returns when it has recovered.
        """
        await self.audit.load()
        await self.reconciler.load()
        self.executor.expect(self.placer.runs_here())
        await start_executor()
        await self.reconciler.check_local(list(self.executor.lives()))
        for entry in list(self.ledger.open.values()):
            if entry.children:
                self.parents.take_up(entry)
            if entry.task.cancelling:
                self.leases.end_attempt(entry, "cancelled")
        await self._nursery.start(self.acceptor.run)
        await self._nursery.start(self.leases.run)
        await self._nursery.start(self.placer.run)
        await self._nursery.start(self.reconciler.run)

    # What REST asks (rest.backend.Backend)

    async def submit(
        self, submissions: Sequence[Submission], caller: Caller, idempotency: Idempotency | None = None
    ) -> tuple[Task, ...]:
        """Accept all or none, durably."""
        return await self.acceptor.submit(submissions, caller, idempotency)

    async def explain(self, spec: TaskSpec, caller: Caller) -> tuple[Ranked, ...]:
        """The ranking that a submission would see now."""
        self.acceptor.validate(spec, caller)
        return self.view.rank(spec)

    async def task(self, task_id: str, caller: Caller) -> Task:
        """Any task of the fleet."""
        return await self.reader.task(task_id, caller)

    async def wait(self, task_id: str, caller: Caller, seconds: float) -> Task:
        """The task once it has ended, or as it is after ``seconds``."""
        return await self.reader.wait(task_id, caller, seconds)

    async def wait_placed(self, task_id: str, seconds: float) -> Task:
        """A task of this node once a target has accepted it, or as it is after ``seconds``."""
        entry = self.ledger.open.get(task_id)
        task = entry.saved if entry else await self.store.task(task_id)
        if task is None:
            raise InvalidRequestError(f"no task {task_id!r} at this node")
        with self.placer.waiting_for(task_id):
            return await self.reader.until(task, seconds, _placed)

    async def tasks(self, which: TaskFilter, caller: Caller, *, local: bool) -> TaskPage:
        """Tasks of the fleet or of this node."""
        return await self.reader.tasks(which, caller, local=local)

    async def children(self, task_id: str, caller: Caller) -> tuple[Task, ...]:
        """The children of a task."""
        return await self.reader.children(task_id, caller)

    async def cancel(self, task_id: str, caller: Caller) -> Task:
        """Begin to cancel, at this node or at the task's origin."""
        origin = self.reader.origin(task_id)
        if origin != self.view.node_id:
            return await self.reader.cancel_there(origin, task_id, caller)
        return await self.cancel_here(task_id, caller)

    async def cancel_here(self, task_id: str, caller: Caller) -> Task:
        """Begin to cancel a task of this origin."""
        task = await self.reader.local(task_id, caller)
        entry = self.ledger.open.get(task_id)
        if entry is None or task.state.terminal:
            return task
        record = self.audit.record(caller, CANCEL, task_id, entry.task.name)
        again = entry.task.cancelling
        if entry.children:
            await self.parents.cancel(entry, record)
        else:
            await self.leases.cancel(entry, record)
        if not again:
            self.audit.say(record)
        return entry.saved

    def output(self, request: FollowOutput) -> AbstractAsyncContextManager[AsyncIterator[Chunk | OutputEnd]]:
        """Output of any task of the fleet."""
        return self.outputs.of_fleet(request)

    def events(
        self, task_id: str | None, caller: Caller, after: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Events after a number, then live ones."""
        return self.reader.events(task_id, caller, after)

    def nodes(self) -> tuple[NodeView, ...]:
        """Every node this one knows, itself first."""
        return self.nodes_part.all()

    def node(self, name_or_id: str) -> NodeView:
        """One node."""
        return self.nodes_part.one(name_or_id)

    async def change_node(
        self, name_or_id: str, action: Literal["drain", "cordon", "resume"], caller: Caller
    ) -> NodeView:
        """Change a node's state. The node that does it records it, with the one that was asked as ``via``."""
        if self.nodes_part.one(name_or_id).is_self:
            await self.audit.keep(self.audit.record(caller, action, self.view.me.info.name))
        view = await self.nodes_part.change(name_or_id, action, caller)
        self.placer.wake()
        return view

    async def forget(self, name_or_id: str, caller: Caller) -> None:
        """Drop a dead or left node everywhere."""
        name = self.nodes_part.one(name_or_id).peer.info.name
        await self.audit.keep(self.audit.record(caller, FORGET, name))
        await self.nodes_part.forget(name_or_id, caller)

    async def audited(self, which: AuditFilter, caller: Caller, *, local: bool) -> AuditPage:
        """Who did what in the fleet or at this node."""
        return await self.audit.page(which, caller, local=local)

    def ready(self) -> Mapping[str, str]:
        """Check name to what is wrong, empty text where it is fine."""
        return self.checks()

    def statistics(self) -> Mapping[str, Any]:
        """Counts for ``/metrics``."""
        states = dict.fromkeys((str(state) for state in TaskState if not state.terminal), 0)
        for entry in self.ledger.open.values():
            if not entry.task.state.terminal:
                states[str(entry.task.state)] += 1
        return {
            "tasks_open": states,
            "tasks_ended": self.ledger.ended,
            "queued": len(self.ledger.queue),
            "rank_seconds": self.view.took,
            "offer_seconds": self.placer.offered,
            "placed_seconds": self.placer.placed,
        }

    def _ended(self, entry: Entry) -> None:
        if entry.task.parent is not None:
            self._nursery.start_soon(self.parents.child_ended, entry.task.parent)


def _placed(task: Task) -> bool:
    """Whether a target has accepted the task, or it has ended."""
    attempt = task.current
    return (
        task.state.terminal or task.state in PLACED or (attempt is not None and attempt.state == "preparing")
    )
