"""What this origin believes, held against what the targets know: at start, and when a node comes back."""

from collections.abc import Mapping, Sequence
from typing import NoReturn

import msgspec
import structlog
import trio

from edgeorch.dispatch.entry import Entry
from edgeorch.dispatch.leases import MARGIN_S, Leases
from edgeorch.dispatch.ledger import Ledger
from edgeorch.dispatch.place import Placer
from edgeorch.dispatch.view import View
from edgeorch.errors import EdgeorchError, StorageError
from edgeorch.model import Attempt, AttemptState, TaskSpec, TaskState, attempt_of
from edgeorch.store import TaskFilter
from edgeorch.wire import Peers
from edgeorch.wire.messages import FindRuns, Runs, RunState

log = structlog.get_logger()

ASK_S = 5.0
SETTLE_S = 2.0
"""After a start, other nodes get this long to be found before waiting tasks are offered again."""
BATCH = 500


class Reconciler:
    """Asks nodes about this origin's open tasks."""

    def __init__(self, ledger: Ledger, view: View, placer: Placer, leases: Leases, peers: Peers) -> None:
        self.ledger = ledger
        self.view = view
        self.placer = placer
        self.leases = leases
        self.peers = peers

    async def load(self) -> None:
        """Take every open task of the store into memory; nothing is sent or started yet.

        Raises:
            StorageError: the store cannot be read.
        """
        for newest in await self.ledger.store.tasks(TaskFilter(limit=1)):
            self.ledger.ids.above(newest.id)
        tasks = await self.ledger.store.open_tasks()
        for task in tasks:
            try:
                spec = msgspec.json.decode(task.spec, type=TaskSpec)
            except msgspec.MsgspecError as error:
                log.warning("a task cannot be taken up by this release", task=task.id, reason=str(error))
                continue
            entry = self.ledger.admit(task, spec)
            attempt = task.current
            if attempt and not attempt.state.terminal and attempt.node != self.view.node_id:
                entry.expires = self.ledger.seams.boottime() + self.leases.lease.lease_s + MARGIN_S
            if attempt:
                self.ledger.watched[task.id] = entry
            if spec.placement.mode != "best":
                children = await self.ledger.store.children(task.id)
                entry.children = {child.id: child.state.terminal for child in children}
        if tasks:
            log.info("took up open tasks", count=len(tasks))

    async def check_local(self, running: Sequence[str]) -> None:
        """After the executor has recovered: attempts of this node that it does not know are lost."""
        known = set(running)
        for entry in list(self.ledger.watched.values()):
            attempt = entry.task.current
            if attempt is None or attempt.state.terminal or attempt.node != self.view.node_id:
                continue
            if f"{entry.task.id}.{attempt.number}" not in known:
                reason = "the node restarted before the service was started"
                await self._move(entry, AttemptState.LOST, "node_lost", reason)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Ask everybody once, then place what waits; after that, ask each node that comes (back) to life.

        A node that is heard for the first time is asked about every open task: this store may be an old one.
        """
        task_status.started()
        asked: set[str] = set()
        waiting = [entry for entry in self.ledger.open.values() if entry.task.state is TaskState.WAITING]
        if self.ledger.open:
            with trio.move_on_after(SETTLE_S):
                while not self.view.alive():
                    await self.view.membership.states_changed.wait()
            for node in list(self.view.alive()):
                if await self._ask(node, list(self.ledger.open)):
                    asked.add(node)
        for entry in waiting:
            if entry.task.state is TaskState.WAITING:
                self.placer.enqueue(entry)
        alive = set(self.view.alive())
        while True:
            await self._until_news()
            unclear, self.placer.unclear = self.placer.unclear.is_set(), trio.Event()
            now = set(self.view.alive())
            for node in now if unclear else now - alive:
                if await self._ask(node, self._held_by(node) if node in asked else list(self.ledger.open)):
                    asked.add(node)
            alive = now

    def _held_by(self, node: str) -> list[str]:
        """Open tasks whose newest attempt is at the node."""
        return [task_id for task_id in self.ledger.open if self._settled_at(node, task_id)]

    async def _until_news(self) -> None:
        async with trio.open_nursery() as nursery:

            async def first(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(first, self.view.membership.states_changed)
            nursery.start_soon(first, self.placer.unclear)

    async def _ask(self, node: str, task_ids: Sequence[str]) -> bool:
        """Whether it has answered."""
        for start in range(0, len(task_ids), BATCH):
            batch = tuple(task_ids[start : start + BATCH])
            # Offers that are made or under way while the node answers are none of its answer's business.
            held = {task_id: number for task_id in batch if (number := self._settled_at(node, task_id))}
            answer: Runs | None = None
            with trio.move_on_after(ASK_S):
                try:
                    answer = await self.peers.call(node, FindRuns(task_ids=batch))
                except EdgeorchError as error:
                    log.debug("a node was not asked about its runs", node=node, reason=str(error))
            if answer is None:
                return False
            try:
                await self._compare(node, held, answer.runs)
            except StorageError as error:
                log.warning("cannot record what a node said", node=node, reason=str(error))
        return True

    def _settled_at(self, node: str, task_id: str) -> int | None:
        """Number of the task's newest attempt where it is open at the node and its offer is answered."""
        entry = self.ledger.open.get(task_id)
        attempt = entry.task.current if entry else None
        if entry is None or attempt is None or entry.offering:
            return None
        return attempt.number if attempt.node == node and not attempt.state.terminal else None

    async def _compare(self, node: str, held: Mapping[str, int], runs: Sequence[RunState]) -> None:
        """Believe the node about its own attempts: take what it knows, lose what it does not."""
        known = {run.key for run in runs}
        for run in runs:
            await self._adopt(node, run)
            await self.ledger.take_report(node, run)
        for task_id, number in held.items():
            entry = self.ledger.open.get(task_id)
            attempt = entry.task.current if entry else None
            if entry is None or attempt is None or self._settled_at(node, task_id) != number:
                continue
            if f"{task_id}.{attempt.number}" in known:
                self.leases.extend(entry)
            elif attempt.state is AttemptState.OFFERED and not entry.at_most_once:
                # The offer never arrived: that costs no attempt.
                await self._move(entry, AttemptState.REFUSED, "rejected", "the offer did not arrive")
            else:
                reason = f"node {attempt.node_name} does not have it any more"
                await self._move(entry, AttemptState.LOST, "node_lost", reason)

    async def _adopt(self, node: str, run: RunState) -> None:
        """An attempt that this store does not know (it was restored from a backup) is taken up."""
        task_id, number = attempt_of(run.key)
        entry = self.ledger.open.get(task_id)
        if entry is None or number < entry.next_number():
            return
        if entry.task.state.terminal or run.state in (AttemptState.REFUSED, AttemptState.SUPERSEDED):
            return
        log.warning("taking up an attempt that was not in the store", key=run.key, node=node)
        attempt = Attempt(
            number=number,
            node=node,
            node_name=self.view.name_of(node),
            state=AttemptState.OFFERED,
            offered_at=self.ledger.seams.wall(),
        )
        changes = self.ledger.add_attempt(entry, attempt)
        self.leases.extend(entry)
        await self.ledger.commit(entry, changes)

    async def _move(self, entry: Entry, state: AttemptState, cause: str, reason: str) -> None:
        attempt = entry.task.attempts[-1]
        changes, effects = self.ledger.move_attempt(
            entry, attempt.number, state, cause=cause, reason=reason, ended_at=self.ledger.seams.wall()
        )
        try:
            await self.ledger.commit(entry, changes, effects)
        except StorageError as error:
            log.warning("cannot record what became of an attempt", task=entry.task.id, reason=str(error))
