"""Tasks that run on several nodes: a parent without attempts, and one pinned child per node."""

from collections.abc import Sequence

import msgspec
import structlog

from edgeorch.dispatch.entry import Entry
from edgeorch.dispatch.leases import Leases
from edgeorch.dispatch.ledger import Ledger
from edgeorch.errors import StorageError
from edgeorch.lifecycle import TaskEvent
from edgeorch.model import Ranked, Task, TaskSpec, TaskState, new_task_id, origin_of
from edgeorch.scheduler import why_waiting
from edgeorch.store import PutAudit

log = structlog.get_logger()


def choose_nodes(spec: TaskSpec, ranking: Sequence[Ranked]) -> tuple[list[Ranked], str]:
    """The nodes of a ``spread`` or ``all`` task, or none and the reason why it waits.

    ``all`` takes every live node that matches, whether or not it has room now: its child waits there.
    ``spread`` takes the best ``count`` nodes that have room.
    """
    free = [line for line in ranking if not line.refusal]
    if spec.placement.mode == "spread":
        if len(free) >= spec.placement.count:
            return free[: spec.placement.count], ""
        lacking = [line for line in ranking if line.refusal]
        missing = f"{len(free)} of {spec.placement.count} nodes are free"
        return [], f"{missing}; {why_waiting(lacking)}" if lacking else missing
    matching = [line for line in ranking if line.driver and not _never(line)]
    return matching, "" if matching else why_waiting(ranking)


def _never(line: Ranked) -> bool:
    """Whether the refusal is about what the node is, not about its present load."""
    temporary = ("all ", "needs ", "no measurements")
    return bool(line.refusal) and not line.refusal.startswith(temporary)


def make_children(parent: Entry, nodes: Sequence[Ranked], ledger: Ledger) -> list[Entry]:
    """One child per node, in memory; the caller commits them with the parent."""
    task = parent.task
    made = []
    for node in nodes:
        spec = pinned(parent.spec, node.node)
        child = Task(
            id=new_task_id(ledger.seams.wall(), ledger.seams.rng, origin_of(task.id)),
            name=task.name,
            state=TaskState.WAITING,
            origin=task.origin,
            caller=task.caller,
            created_at=task.created_at,
            created_tick=task.created_tick,
            spec=msgspec.json.encode(spec),
            parent=task.id,
            priority=task.priority,
            requires=task.requires,
        )
        made.append(ledger.admit(child, spec))
    parent.children = dict.fromkeys((child.task.id for child in made), False)
    return made


def pinned(spec: TaskSpec, node_id: str) -> TaskSpec:
    """The spec of a child: the same service for one node, without a callback of its own."""
    placement = msgspec.structs.replace(spec.placement, mode="best", count=1, node=node_id, self_=True)
    return msgspec.structs.replace(spec, placement=placement, callback_url=None)


class Parents:
    """Ends parents when their children have ended, and cancels children with their parent."""

    def __init__(self, ledger: Ledger, leases: Leases) -> None:
        self.ledger = ledger
        self.leases = leases

    async def child_ended(self, parent_id: str) -> None:
        """End the parent if this was its last child."""
        parent = self.ledger.open.get(parent_id)
        if parent is None or parent.task.state.terminal:
            return
        children = await self.ledger.store.children(parent_id)
        if len(children) < len(parent.children) or not all(child.state.terminal for child in children):
            return
        event, reason, exit_code = verdict(children, cancelling=parent.task.cancelling)
        changes, effects = self.ledger.move_task(parent, event, reason, exit_code=exit_code)
        try:
            await self.ledger.commit(parent, changes, effects)
        except StorageError as error:
            log.warning("cannot record the end of a parent yet", task=parent_id, reason=str(error))

    async def cancel(self, parent: Entry, record: PutAudit) -> None:
        """Cancel every child; the parent ends with the last of them. ``record`` tells who asked."""
        if not parent.task.cancelling:
            parent.update(cancelling=True, reason="being cancelled")
            await self.ledger.commit(parent, [*self.ledger.state_changes(parent), record])
        for child_id in list(parent.children):
            child = self.ledger.open.get(child_id)
            if child is not None:
                await self.leases.cancel(child)
        await self.child_ended(parent.task.id)


def verdict(children: Sequence[Task], *, cancelling: bool) -> tuple[TaskEvent, str, int | None]:
    """What the ends of the children mean for the parent: event, reason, exit code."""
    bad = [child for child in children if child.state is not TaskState.SUCCEEDED]
    if not bad:
        return TaskEvent.SUCCEED, "", 0
    done = f"{len(children) - len(bad)} of {len(children)} nodes succeeded"
    first = bad[0]
    where = first.current.node_name if first.current else "?"
    reason = f"{done}; {where}: {first.state}" + (f", {first.reason}" if first.reason else "")
    if cancelling:
        return TaskEvent.CANCEL, reason, None
    return TaskEvent.FAIL, reason, first.exit_code
