"""Tasks that run on several nodes: a parent without attempts, and one pinned child per node."""

from collections.abc import Sequence

import msgspec
import structlog
import trio

from edgeorch.dispatch.entry import Entry
from edgeorch.dispatch.leases import Leases
from edgeorch.dispatch.ledger import Ledger
from edgeorch.errors import StorageError
from edgeorch.lifecycle import TaskEvent
from edgeorch.model import Ranked, Task, TaskSpec, TaskState, origin_of
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
            id=ledger.ids.new(origin_of(task.id)),
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

    def __init__(self, ledger: Ledger, leases: Leases, nursery: trio.Nursery) -> None:
        self.ledger = ledger
        self.leases = leases
        self._nursery = nursery

    def take_up(self, parent: Entry) -> None:
        """Go on after a start: the children may have ended, or wait for their cancellation."""
        if parent.task.cancelling:
            self._nursery.start_soon(self._cancel_children, parent)
        else:
            self._nursery.start_soon(self.child_ended, parent.task.id)

    async def child_ended(self, parent_id: str) -> None:
        """End the parent if this was its last child; asks until the disk tells."""
        wait_s = 0.5
        while (parent := self.ledger.open.get(parent_id)) is not None and not parent.task.state.terminal:
            try:
                children = await self.ledger.store.children(parent_id)
            except StorageError as error:
                log.warning("cannot see yet how children ended", task=parent_id, reason=str(error))
                await trio.sleep(wait_s)
                wait_s = min(wait_s * 2, 30.0)
                continue
            if len(children) >= len(parent.children) and all(child.state.terminal for child in children):
                await self._end(parent, children)
            return

    async def _end(self, parent: Entry, children: Sequence[Task]) -> None:
        event, reason, exit_code = verdict(children, cancelling=parent.task.cancelling)
        changes, effects = self.ledger.move_task(parent, event, reason, exit_code=exit_code)
        try:
            await self.ledger.commit(parent, changes, effects)
        except StorageError as error:
            log.warning("cannot record the end of a parent yet", task=parent.task.id, reason=str(error))

    async def cancel(self, parent: Entry, record: PutAudit) -> None:
        """Cancel every child; the parent ends with the last of them. ``record`` tells who asked."""
        if parent.task.state.terminal or parent.task.cancelling:
            return
        parent.update(cancelling=True, reason="being cancelled")
        try:
            await self.ledger.commit(parent, [*self.ledger.state_changes(parent), record])
        finally:
            # Memory has moved on: neither a full disk nor a caller who goes away may stop it half-way.
            self._nursery.start_soon(self._cancel_children, parent)

    async def _cancel_children(self, parent: Entry) -> None:
        for child_id in list(parent.children):
            child = self.ledger.open.get(child_id)
            if child is not None:
                try:
                    await self.leases.cancel(child)
                except StorageError as error:
                    # It ends all the same, and ``Leases`` writes it down once the disk takes it.
                    log.warning("cannot record a cancellation yet", task=child_id, reason=str(error))
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
