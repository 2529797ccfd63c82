"""What other nodes ask of dispatch and executor: message type to answer.

A message that names a node or an attempt is checked against the sender's certificate: an origin may only stop
and find its own attempts, a target only report and renew what it was given.
"""

import msgspec
import structlog

from edgeorch.dispatch.dispatch import Dispatch
from edgeorch.dispatch.nodes import STATES
from edgeorch.errors import ForbiddenError, NotFoundError
from edgeorch.executor.executor import Executor
from edgeorch.model import Caller, Task, origin_of
from edgeorch.wire import From, Handlers, Sender
from edgeorch.wire.messages import (
    AuditFound,
    CancelTask,
    ChangeNode,
    Done,
    FindRuns,
    FollowEvents,
    FollowOutput,
    ForgetNode,
    GetTask,
    Happened,
    ListAudit,
    ListTasks,
    MakeOffer,
    NodeStatus,
    Offered,
    Renew,
    Renewed,
    Report,
    ReportTaken,
    Runs,
    StopAttempt,
    TaskFound,
    TasksFound,
    WaitTask,
)

log = structlog.get_logger()

LONGEST_WAIT_S = 3600.0
LONGEST_ADDRESS = 64
"""Letters: an IPv6 address with its zone."""
LIST_SIZE = 768 << 10
TASK_SIZE = 1024
ATTEMPT_SIZE = 512
"""Bytes: what a list of tasks may take of a frame, and what a task and an attempt take beside the spec."""


def add_handlers(handlers: Handlers, dispatch: Dispatch, executor: Executor) -> None:
    """Fill in the table for everything that tasks need."""
    asked = _Asked(dispatch, executor)
    handlers.requests |= {
        MakeOffer: asked.offer,
        StopAttempt: asked.stop,
        FindRuns: asked.find,
        Report: asked.report,
        Renew: asked.renew,
        GetTask: asked.get_task,
        WaitTask: asked.wait_task,
        ListTasks: asked.list_tasks,
        CancelTask: asked.cancel_task,
        ListAudit: asked.list_audit,
        ChangeNode: asked.change_node,
        ForgetNode: asked.forget_node,
    }
    handlers.streams |= {FollowOutput: asked.follow_output, FollowEvents: asked.follow_events}


class _Asked:
    def __init__(self, dispatch: Dispatch, executor: Executor) -> None:
        self.dispatch = dispatch
        self.executor = executor

    async def offer(self, sender: From, message: MakeOffer) -> Offered:
        offer = message.offer
        _check_origin(sender, offer.task_id, offer.origin)
        return await self.executor.accept(offer, message.secrets)

    async def stop(self, sender: From, message: StopAttempt) -> Done:
        _check_origin(sender, message.key.rpartition(".")[0])
        self.executor.stop(message.key, message.cause)
        return Done()

    async def find(self, sender: From, message: FindRuns) -> Runs:
        for task_id in message.task_ids:
            _check_origin(sender, task_id)
        return Runs(runs=await self.executor.find(message.task_ids))

    async def report(self, sender: From, message: Report) -> ReportTaken:
        run = message.run
        if run.progress:
            await self.dispatch.ledger.take_progress(sender.node_id, run)
            return ReportTaken(sequence=run.sequence)
        known = await self.dispatch.ledger.take_report(sender.node_id, run)
        return ReportTaken(sequence=run.sequence, known=known)

    async def renew(self, sender: From, message: Renew) -> Renewed:
        return Renewed(keys=self.dispatch.leases.heard(sender.node_id, message.keys))

    async def get_task(self, sender: From, message: GetTask) -> TaskFound:
        task = await self.dispatch.reader.local(message.task_id, _via(sender, message.caller))
        return TaskFound(task=_without_tails(task))

    async def wait_task(self, sender: From, message: WaitTask) -> TaskFound:
        task = await self.dispatch.reader.local(message.task_id, _via(sender, message.caller))
        seconds = min(message.wait_s, LONGEST_WAIT_S)
        task = await self.dispatch.reader.until(task, seconds, lambda now: now.state.terminal)
        return TaskFound(task=_without_tails(task))

    async def list_tasks(self, sender: From, message: ListTasks) -> TasksFound:
        page = await self.dispatch.reader.tasks(message.which, _via(sender, message.caller), local=True)
        tasks: list[Task] = []
        size = 0
        for task in page.tasks:
            size += len(task.spec) + TASK_SIZE + ATTEMPT_SIZE * len(task.attempts)
            if tasks and size > LIST_SIZE:
                break
            tasks.append(_without_tails(task))
        return TasksFound(tasks=tuple(tasks), more=len(tasks) < len(page.tasks))

    async def cancel_task(self, sender: From, message: CancelTask) -> TaskFound:
        task = await self.dispatch.cancel_here(message.task_id, _via(sender, message.caller))
        return TaskFound(task=_without_tails(task))

    async def list_audit(self, sender: From, message: ListAudit) -> AuditFound:
        if not _via(sender, message.caller).may("admin"):
            raise ForbiddenError("reading the audit trail needs role admin")
        found = await self.dispatch.audit.here(message.which)
        size, fitting = 0, 0
        for record in found:
            size += len(msgspec.msgpack.encode(record))
            if fitting and size > LIST_SIZE:
                break
            fitting += 1
        return AuditFound(records=tuple(found[:fitting]), more=fitting < len(found))

    async def change_node(self, sender: From, message: ChangeNode) -> NodeStatus:
        caller = _via(sender, message.caller)
        if not caller.may("admin"):
            raise ForbiddenError("changing a node needs role admin")
        me = self.dispatch.nodes_part.me
        await self.dispatch.audit.keep(self.dispatch.audit.record(caller, message.action, me.info.name))
        me.set_state(STATES[message.action])
        return NodeStatus(info=me.info, sample=me.sample())

    async def forget_node(self, sender: From, message: ForgetNode) -> Done:
        if not _via(sender, message.caller).may("admin"):
            raise ForbiddenError("forgetting a node needs role admin")
        self.dispatch.view.membership.forget(message.node_id)
        return Done()

    async def follow_output(self, sender: From, message: FollowOutput, out: Sender) -> None:
        caller = _via(sender, message.caller)
        if self.dispatch.reader.origin(message.task_id) == self.dispatch.view.node_id:
            await self.dispatch.reader.local(message.task_id, caller)
            async with self.dispatch.outputs.of_fleet(message) as chunks:
                async for chunk in chunks:
                    await out.send(chunk)
            return
        _check_origin(sender, message.task_id)
        async with self.dispatch.outputs.of_run(message) as chunks:
            async for chunk in chunks:
                await out.send(chunk)

    async def follow_events(self, sender: From, message: FollowEvents, out: Sender) -> None:
        caller = _via(sender, message.caller)
        async with self.dispatch.events(message.task_id, caller, message.after) as events:
            async for event in events:
                await out.send(Happened(event=event))


def _check_origin(sender: From, task_id: str, claimed: str = "") -> None:
    """Only the node in a task's id may speak as its origin."""
    try:
        origin = origin_of(task_id)
    except ValueError as error:
        raise NotFoundError(str(error)) from None
    if origin != sender.node_id or claimed not in ("", sender.node_id):
        log.warning(
            "refused a message that speaks for another node", sender=sender.node_id, claimed=claimed or origin
        )
        raise ForbiddenError(f"node {sender.node_id} is not the origin of this task")


def _without_tails(task: Task) -> Task:
    """A task for another node: only the origin needs the kept output, and frames are small."""
    return msgspec.structs.replace(task, stdout_tail=b"", stderr_tail=b"")


def _via(sender: From, caller: Caller) -> Caller:
    """The caller as this node believes it: checked by the sender, and by nobody else."""
    return Caller(
        token=caller.token,
        role=caller.role,
        via=sender.node_id,
        loopback=False,
        address=caller.address[:LONGEST_ADDRESS],
    )
