"""The origin's side of leases, deadlines and cancelling: what has to end, and when."""

import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Literal, NoReturn, TypeAlias

import structlog
import trio

from edgeorch.config import Lease
from edgeorch.dispatch.entry import Entry
from edgeorch.dispatch.ledger import Ledger
from edgeorch.dispatch.view import View
from edgeorch.errors import EdgeorchError, StorageError
from edgeorch.executor.executor import Executor
from edgeorch.lifecycle import Effect, TaskEvent
from edgeorch.model import AttemptState, attempt_of
from edgeorch.seams import Seams
from edgeorch.store import PutAudit, TaskChange
from edgeorch.wire import Peers
from edgeorch.wire.messages import StopAttempt

log = structlog.get_logger()

Cause: TypeAlias = Literal["cancelled", "timed_out", "superseded"]

MARGIN_S = 3.0
"""The origin waits this much longer than the target, which needs up to 2 s to end the attempt."""


class Leases:
    """Looks at the clock for all open tasks of this origin."""

    def __init__(
        self,
        ledger: Ledger,
        view: View,
        *,
        executor: Executor,
        peers: Peers,
        lease: Lease,
        nursery: trio.Nursery,
        seams: Seams,
    ) -> None:
        self.ledger = ledger
        self.view = view
        self.executor = executor
        self.peers = peers
        self.lease = lease
        self.seams = seams
        self._nursery = nursery

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Once a second, end what is overdue. A second is the resolution of leases and deadlines."""
        task_status.started()
        while True:
            await trio.sleep(1.0)
            await self._save_again()
            now = self.seams.boottime()
            await self._end_late(now)
            for task_id, entry in list(self.ledger.watched.items()):
                if self.ledger.open.get(task_id) is not entry:
                    del self.ledger.watched[task_id]
                elif now >= entry.expires:
                    await self._attempt_to(self._expired, entry)

    def heard(self, node: str, keys: Sequence[str]) -> tuple[str, ...]:
        """A target still runs these: extend their leases. Returns the keys that are still wanted."""
        wanted = []
        for key in keys:
            task_id, number = attempt_of(key)
            entry = self.ledger.open.get(task_id)
            if entry is None:
                continue
            attempt = entry.task.current
            if attempt is None or attempt.number != number or attempt.node != node:
                continue
            if attempt.state.terminal or entry.task.cancelling or entry.task.state.terminal:
                continue
            self.extend(entry)
            wanted.append(key)
        return tuple(wanted)

    def extend(self, entry: Entry) -> None:
        """The newest attempt's target was heard just now."""
        entry.expires = self.seams.boottime() + self.lease.lease_s + MARGIN_S
        if entry.unreachable_at is not None:
            entry.unreachable_at = None
            if not entry.task.state.terminal:  # else it is why the task has ended
                entry.update(reason="")

    async def cancel(self, entry: Entry, *records: PutAudit) -> None:
        """Begin to end a task on request; safe to repeat. ``records`` tell who asked, in one transaction."""
        if entry.task.state.terminal or entry.task.cancelling:
            return
        entry.update(cancelling=True)
        changes: list[TaskChange]
        effects: tuple[Effect, ...] = ()
        attempt = entry.task.current
        if attempt is None or attempt.state.terminal:
            changes, effects = self.ledger.move_task(entry, TaskEvent.CANCEL, "cancelled before it ran")
        else:
            entry.update(reason="being cancelled")
            changes = self.ledger.state_changes(entry)
        try:
            await self.ledger.commit(entry, [*changes, *records], effects)
        finally:
            # Memory has moved on, so a second try would find nothing left to do.
            self.end_attempt(entry, "cancelled")

    def end_attempt(self, entry: Entry, cause: Cause) -> None:
        """Tell the newest attempt's target to end it; a target that does not hear it loses its lease."""
        attempt = entry.task.current
        if attempt is None or attempt.state.terminal:
            return
        key = f"{entry.task.id}.{attempt.number}"
        if attempt.node == self.view.node_id:
            self.executor.stop(key, cause)
        else:
            self._nursery.start_soon(self._tell, attempt.node, key, cause)

    async def lose(self, entry: Entry, reason: str) -> None:
        """The newest attempt is gone: replace it, or end the task where the rules say so."""
        attempt = entry.task.current
        if attempt is None or attempt.state.terminal:
            return
        changes, effects = self.ledger.move_attempt(
            entry,
            attempt.number,
            AttemptState.LOST,
            cause="node_lost",
            reason=reason,
            ended_at=self.seams.wall(),
        )
        await self.ledger.commit(entry, changes, effects)

    async def _end_late(self, now: float) -> None:
        """What is past its deadline; a deep queue is only looked through when there may be something."""
        if now < self.ledger.next_deadline:
            return
        for entry in list(self.ledger.open.values()):
            if now >= entry.deadline and not entry.task.state.terminal:
                await self._attempt_to(self._past_deadline, entry)
        going = (entry for entry in self.ledger.open.values() if not entry.task.state.terminal)
        self.ledger.next_deadline = min((entry.deadline for entry in going), default=math.inf)

    async def _attempt_to(self, act: Callable[[Entry], Awaitable[None]], entry: Entry) -> None:
        try:
            await act(entry)
        except StorageError as error:
            log.warning("cannot record a change yet", task=entry.task.id, reason=str(error))

    async def _save_again(self) -> None:
        """What the disk refused may have been the last change of a task: nothing else would write it."""
        for task_id, entry in list(self.ledger.refused.items()):
            # Before the commit, which puts it back where the disk refuses again.
            self.ledger.refused.pop(task_id, None)
            if entry.unsaved and task_id in self.ledger.open:
                try:
                    await self.ledger.commit(entry, ())
                except StorageError as error:
                    log.debug("the disk still refuses", task=task_id, reason=str(error))
                    return

    async def _past_deadline(self, entry: Entry) -> None:
        allowed = self.ledger.deadline_s(entry.spec, entry.task.caller)
        key = "deadline_s" if allowed == entry.spec.deadline_s else "policy.max_deadline_s"
        reason = f"not done within {key} = {allowed:g}"
        changes, effects = self.ledger.move_task(entry, TaskEvent.TIME_OUT, reason)
        self.end_attempt(entry, "timed_out")
        await self.ledger.commit(entry, changes, effects)

    async def _expired(self, entry: Entry) -> None:
        attempt = entry.task.current
        if attempt is None or attempt.state.terminal:
            entry.expires = math.inf
            return
        now = self.seams.boottime()
        if entry.at_most_once and not entry.task.cancelling and not entry.task.state.terminal:
            if entry.unreachable_at is None:
                entry.unreachable_at, entry.expires = now, now + 1.0
                since = self.seams.wall() - self.lease.lease_s
                entry.update(reason=f"node {attempt.node_name} unreachable since {_utc(since)}")
                await self.ledger.commit(entry, self.ledger.state_changes(entry))
                return  # it may have been heard again while that was written
            if now - entry.unreachable_at < self.lease.lost_after_s:
                entry.expires = now + 1.0
                return
        log.info("an attempt is lost", task=entry.task.id, node=attempt.node_name)
        await self.lose(entry, f"node {attempt.node_name} was not heard for {self.lease.lease_s:g} s")

    async def _tell(self, node: str, key: str, cause: Cause) -> None:
        task_id, _ = attempt_of(key)
        wait_s = 0.5
        while (entry := self.ledger.open.get(task_id)) and not self._over(entry, key):
            try:
                with trio.fail_after(5.0):
                    await self.peers.call(node, StopAttempt(key=key, cause=cause))
            except (EdgeorchError, trio.TooSlowError) as error:
                log.debug("a node was not told to end an attempt", key=key, reason=str(error))
                await trio.sleep(wait_s)
                wait_s = min(wait_s * 2, 10.0)
            else:
                return

    @staticmethod
    def _over(entry: Entry, key: str) -> bool:
        attempt = entry.attempt(attempt_of(key)[1])
        return attempt is None or attempt.state.terminal


def _utc(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
