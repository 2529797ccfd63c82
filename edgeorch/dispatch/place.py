"""Finding a node for a task: plan in memory, commit, then carry out.

A plan reserves at once what it uses (a slot here, a line in the books for another node), so that the next
plan of the same moment sees it.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import structlog
import trio

from edgeorch.config import Lease
from edgeorch.dispatch.children import choose_nodes, make_children
from edgeorch.dispatch.entry import NONE, Entry, Refused
from edgeorch.dispatch.leases import MARGIN_S
from edgeorch.dispatch.ledger import Ledger
from edgeorch.dispatch.plan import Plan
from edgeorch.dispatch.view import View
from edgeorch.errors import EdgeorchError, NodeUnreachableError, StorageError
from edgeorch.executor.admission import Refusal, Rules, tightened
from edgeorch.executor.executor import Executor
from edgeorch.lifecycle import Effect, TaskEvent
from edgeorch.model import Attempt, AttemptState, Offer, Ranked, Run, Score, Task, TaskState
from edgeorch.scheduler import choose_service, driver_of, mismatch
from edgeorch.seams import Seams
from edgeorch.store import PutCallback, PutEvent, TaskChange
from edgeorch.timing import Histogram, clock
from edgeorch.wire import Peers
from edgeorch.wire.messages import MakeOffer, Offered

log = structlog.get_logger()

OFFER_S = 5.0
"""A target answers an offer after one commit; longer than this, its answer is unknown."""
LASTING = ("policy", "driver", "unsupported", "constraint")
DISK_PAUSE_S = 5.0
"""A node whose disk refuses is asked again after this: each refusal brings a sample, which shows no disk."""
MOMENT_S = 0.1
"""That another node has taken a task is written down after this, unless more is known of the task by then."""
TOGETHER = 64
"""Plans of one transaction at most: so much is thought about before anybody else has a turn."""
LOOK_AGAIN_S = 2.0
TELL_S = 1.0
"""A task that has waited for so long tells why; most are placed before anybody could read it. Its line must
not have moved for so long either: of one that moves, each task would be written once more."""
SHAPES = 256
"""Lines whose last move is remembered."""


class Placer:
    """Places waiting tasks when something changes that may help them."""

    def __init__(
        self,
        ledger: Ledger,
        view: View,
        *,
        executor: Executor,
        peers: Peers,
        lease: Lease,
        rules: Rules,
        nursery: trio.Nursery,
        seams: Seams,
    ) -> None:
        self.ledger = ledger
        self.view = view
        self.executor = executor
        self.peers = peers
        self.lease = lease
        self.rules = rules
        self.seams = seams
        self._nursery = nursery
        self._work = trio.Event()
        self._left, self._seen = trio.Event(), view.membership.changed
        """Set where a try left tasks waiting; what changes after that try began."""
        self._taken: list[Entry] = []
        self._some_taken = trio.Event()
        self.awaited: Counter[str] = Counter()
        """Ids of tasks whose placement somebody waits for."""
        self.unclear: trio.Event = trio.Event()
        """Set when an offer's outcome is unknown; reconcile asks the node."""
        self.offered = Histogram()
        """Until the answer to an offer."""
        self.placed = Histogram()
        """From the acceptance of a task until a node has taken it for the first time."""
        self._moved: dict[str, float] = {}
        """When a task of a shape was last placed from the queue, or told why it waits."""
        ledger.on_queue = self.enqueue
        executor.slots.on_free = ledger.books.on_free = self.wake

    def enqueue(self, entry: Entry, seconds: float = 0.0) -> None:
        """Look for a node again, now or after a while."""
        if seconds > 0:
            self._nursery.start_soon(self._enqueue_later, entry, seconds)
        else:
            self.ledger.queue.push(entry)
            self._work.set()

    def wake(self) -> None:
        """Something has changed that may help what waits."""
        if len(self.ledger.queue):
            self._work.set()

    @contextmanager
    def waiting_for(self, task_id: str) -> Iterator[None]:
        """Around waiting for the placement of a task: it is written down at once."""
        self.awaited[task_id] += 1
        try:
            yield
        finally:
            self.awaited[task_id] -= 1
            if not self.awaited[task_id]:
                del self.awaited[task_id]

    def plan(self, entry: Entry) -> Plan:
        """Choose a node and reserve it, or say why the task waits; commit the plan, then ``carry_out``."""
        if entry.spec.placement.mode != "best":
            return self._plan_children(entry)
        while True:
            best = self.view.best(entry)
            if best is None:
                return self._plan_soon(entry) or self._wait(entry)
            if best.node != self.view.node_id:
                return self._plan_remote(entry, best)
            try:
                return self._plan_local(entry, best)
            except Refusal as refusal:
                self._remember(entry, best.node, refusal.detail, lasting=refusal.cause in LASTING)

    def runs_here(self) -> list[Run]:
        """Attempts of this node at its own tasks, as far as the tasks' rows tell of them.

        Until it is told that an attempt runs, nothing else is written of it.
        """
        found = []
        for entry in self.ledger.watched.values():
            attempt = entry.task.current
            if attempt is not None and not attempt.state.terminal and attempt.node == self.view.node_id:
                run = Run(
                    offer=self._make_offer(entry, attempt.number, remote=False),
                    state=AttemptState.PREPARING,
                    driver=attempt.driver,
                    accepted_at=attempt.offered_at,
                    sequence=1,
                )
                found.append(run)
        return found

    def undo(self, plan: Plan) -> None:
        """Give back what a plan has reserved, because it could not be committed."""
        if plan.admission is not None:
            plan.admission.reservation.release()
        self.ledger.books.release(plan.entry.task.id)
        plan.entry.offering = False
        for child in plan.children:
            self.ledger.drop(child)
        if plan.children:
            plan.entry.children = NONE
            # Children that never were have no events; the try that succeeds tells the parent's start.
            gone = {child.task.id for child in plan.children}
            told = {id(one) for one in plan.changes if isinstance(one, PutCallback)}
            plan.entry.unsaved = [
                one
                for one in plan.entry.unsaved
                if id(one) not in told and not (isinstance(one, PutEvent) and one.event.task in gone)
            ]
            self.ledger.notifier.take_back(plan.changes)

    def carry_out(self, plan: Plan) -> None:
        """The plan is on disk: offer it, let the task wait, or start it here, of which the caller tells."""
        if plan.admission is not None:
            self.executor.launch(plan.admission)
            self._time_placing(plan.entry)
            task = plan.entry.task
            if task.cancelling or task.state.terminal:
                # Asked for while the plan was on its way to the disk, when there was nothing to end yet.
                cause = "cancelled" if task.cancelling else "timed_out"
                self.executor.stop(plan.admission.run.offer.key, cause)
        elif plan.offer is not None:
            self._nursery.start_soon(self._offer, plan.entry, plan.offer, plan.target)
        elif plan.children:
            for child in plan.children:
                self.enqueue(child)
        else:
            self.ledger.queue.push(plan.entry)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Try the waiting tasks whenever a slot is freed, a node changes, or a task comes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._heed_nodes)
            nursery.start_soon(self._write_taken)
            task_status.started()
            while True:
                self._work, self._seen = trio.Event(), self.view.membership.changed
                await self._pass()
                if len(self.ledger.queue):
                    self._left.set()
                with trio.move_on_after(LOOK_AGAIN_S if len(self.ledger.queue) else math.inf):
                    await self._work.wait()
        raise AssertionError("unreachable")

    async def _heed_nodes(self) -> NoReturn:
        """Only while tasks wait: some node is heard of all the time."""
        while True:
            await self._left.wait()
            self._left, changed = trio.Event(), self._seen
            while len(self.ledger.queue):
                await changed.wait()
                changed = self.view.membership.changed
                self.wake()

    async def _pass(self) -> None:
        """One try for the head of each shape, and for those behind it while places are found.

        What it finds goes to the disk together, and at once: a task that is cancelled or out of time in
        between would be written as it was before.
        """
        plans: list[Plan] = []
        for shape in self.ledger.queue.shapes():
            left: list[Entry] = []
            for entry in self._line(shape):
                plan = self.plan(entry)
                if plan.placed or plan.changes:
                    plans.append(plan)
                if plan.placed:
                    self._move(shape, trio.current_time())
                else:
                    left.append(entry)
                    # A task that waits because nodes refused it says nothing about the ones behind it.
                    entry.passed_over += any(one.lasting for one in entry.refused.values())
                    if not entry.refused or len(left) >= 8:
                        break
                if len(plans) >= TOGETHER:
                    await self._commit(plans)
                    plans = []
                    self._work.set()  # what was freed meanwhile may have found an empty queue
            for entry in left:
                if entry.task.state is TaskState.WAITING:
                    self.ledger.queue.push(entry)
        if plans:
            await self._commit(plans)

    def _line(self, shape: str) -> Iterator[Entry]:
        """The waiting of a shape, until there is certainly no place for the next one."""
        for entry in self.ledger.queue.drain(shape):
            yield entry
            if self.executor.slots.full_for_long and self.view.alone:
                return

    async def _commit(self, plans: Sequence[Plan]) -> None:
        try:
            await self.ledger.commit_all([(plan.entry, plan.changes) for plan in plans])
        except StorageError as error:
            if len(plans) > 1:
                # One that cannot be stored must not hold up the others.
                for plan in plans:
                    plan.make_alone()
                    await self._commit([plan])
            else:
                await self._not_committed(plans[0], error)
            return
        for plan in plans:
            if plan.placed:
                self.carry_out(plan)
            if plan.admission is not None:
                self.say_placed(plan.entry.task)

    async def _not_committed(self, plan: Plan, error: StorageError) -> None:
        log.warning("cannot place a task", task=plan.entry.task.id, reason=str(error))
        self.undo(plan)
        if plan.placed:
            changes, effects = self._take_back(plan, str(error))
            # Not at once, as it would be queued: the disk may refuse for long.
            effects = tuple(effect for effect in effects if effect is not Effect.QUEUE)
            await self._settle(plan.entry, changes, effects)
            self.enqueue(plan.entry, 1.0)

    def _take_back(self, plan: Plan, reason: str) -> tuple[list[TaskChange], tuple[Effect, ...]]:
        """The task waits again; one that was cancelled meanwhile has ended."""
        entry = plan.entry
        if plan.children:
            event = TaskEvent.CANCEL if entry.task.cancelling else TaskEvent.RETURN
            return self.ledger.move_task(entry, event, reason)
        number = entry.task.attempts[-1].number
        return self._refuse(entry, number, plan.target or self.view.node_id, reason, lasting=False)

    async def _enqueue_later(self, entry: Entry, seconds: float) -> None:
        await trio.sleep(seconds)
        if entry.task.state is TaskState.WAITING:
            self.enqueue(entry)

    def _wait(self, entry: Entry, reason: str = "") -> Plan:
        waited_s = self.seams.age(entry.task.created_at, entry.task.created_tick)
        now = trio.current_time()
        if entry.task.reason and (
            waited_s < TELL_S or now - self._moved.get(entry.shape, -math.inf) < TELL_S
        ):
            return Plan(entry)
        self._move(entry.shape, now)
        reason = reason or self.view.why_none(entry)
        if reason == entry.task.reason:
            return Plan(entry)
        entry.update(reason=reason)
        return Plan(entry, changes=self.ledger.state_changes(entry))

    def _move(self, shape: str, now: float) -> None:
        self._moved.pop(shape, None)
        self._moved[shape] = now  # the last one now
        if len(self._moved) > SHAPES:
            del self._moved[next(iter(self._moved))]

    def _plan_children(self, entry: Entry) -> Plan:
        chosen, reason = choose_nodes(entry.spec, self.view.rank(entry.spec, entry))
        if not chosen:
            return self._wait(entry, reason)
        children = make_children(entry, chosen, self.ledger)
        changes, _ = self.ledger.move_task(entry, TaskEvent.RUN, f"on {len(children)} nodes")
        for child in children:
            changes.extend(self.ledger.state_changes(child))
        return Plan(entry, changes, children=children)

    def _attempt(self, entry: Entry, line: Ranked, state: AttemptState) -> Attempt:
        return Attempt(
            number=entry.next_number(),
            node=line.node,
            node_name=line.node_name,
            driver=line.driver,
            state=state,
            offered_at=self.seams.wall(),
        )

    def _make_offer(self, entry: Entry, number: int, *, remote: bool) -> Offer:
        keep = entry.spec.on_disconnect == "keep"
        offer = Offer(
            task_id=entry.task.id,
            number=number,
            origin=self.view.node_id,
            origin_name=self.view.me.info.name,
            name=entry.task.name,
            spec=entry.task.spec,
            caller=entry.task.caller,
            requires=entry.task.requires,
            lease_s=None if keep or not remote else self.lease.lease_s,
            timeout_s=entry.spec.timeout_s,
        )
        return tightened(offer, self.rules.cap(offer.caller))

    def _plan_local(self, entry: Entry, line: Ranked, *, soon: bool = False) -> Plan:
        attempt = self._attempt(entry, line, AttemptState.PREPARING)
        admission = self.executor.admit(self._make_offer(entry, attempt.number, remote=False), soon=soon)
        entry.expires = math.inf
        changes = self.ledger.add_attempt(entry, attempt)
        # The task's row says that it is prepared here; what is not over in a moment gets one of its own.
        return Plan(entry, changes, admission=admission)

    def _plan_soon(self, entry: Entry) -> Plan | None:
        """Where all nodes are full: a slot that will be free here before the plan is on the disk."""
        me, spec = self.view.me.info, entry.spec
        # One that may be tried once only would be lost if this node stopped while it waits for its turn.
        if self.executor.slots.full_for_long or entry.at_most_once or me.id in entry.refused:
            return None
        service = choose_service(spec.service, me.drivers)
        driver = driver_of(service) if service is not None else ""
        if not self.executor.queues(driver) or mismatch(spec, me, accepting=me.id):
            return None
        line = Ranked(node=me.id, node_name=me.name, driver=driver, score=Score(value=0.0))
        try:
            return self._plan_local(entry, line, soon=True)
        except Refusal:
            return None

    def _plan_remote(self, entry: Entry, line: Ranked) -> Plan:
        attempt = self._attempt(entry, line, AttemptState.OFFERED)
        offer = self._make_offer(entry, attempt.number, remote=True)
        self.ledger.books.promise(entry.task.id, line.node, entry.spec.resources)
        entry.expires = math.inf
        entry.offering = True
        changes = self.ledger.add_attempt(entry, attempt)
        return Plan(entry, changes, offer=offer, target=line.node)

    async def _offer(self, entry: Entry, offer: Offer, target: str) -> None:
        """Send an offer and act on the answer. An unknown outcome stays ``offered``: leases decide."""
        # Only now: the disk may have taken longer than a lease.
        entry.expires = self.seams.boottime() + self.lease.lease_s + MARGIN_S
        begun = clock()
        answer, refusal, lasting = await self._answer_to(offer, target, entry)
        entry.offering = False
        if answer is not None:
            self.offered.since(begun)
        if answer is not None and answer.accepted:
            shown = answer.sample is not None
            self.ledger.books.accepted(entry.task.id, trio.current_time(), shown=shown)
            if answer.sample is not None:
                self.view.membership.sampled(target, answer.sample)
            entry.refused, entry.passed_over = NONE, 0
            self._time_placing(entry)
            self.say_placed(entry.task)
            changes, effects = self.ledger.move_attempt(entry, offer.number, AttemptState.PREPARING)
            if entry.task.id in self.awaited:
                await self._settle(entry, changes, effects)
            else:
                self._settle_later(entry, changes)
        elif answer is not None or refusal:
            if answer is not None:
                refusal, lasting = answer.reason, answer.cause in LASTING
                if answer.sample is not None:
                    # Before the refusal is remembered, which holds until a newer sample comes.
                    self.view.membership.sampled(target, answer.sample)
            pause_s = DISK_PAUSE_S if answer is not None and answer.cause == "storage" else 0.0
            changes, effects = self._refuse(
                entry, offer.number, target, refusal, lasting=lasting, pause_s=pause_s
            )
            await self._settle(entry, changes, effects)
        else:
            log.warning("the outcome of an offer is unknown", key=offer.key, node=self.view.name_of(target))
            self.unclear.set()

    async def _answer_to(self, offer: Offer, target: str, entry: Entry) -> tuple[Offered | None, str, bool]:
        """The target's answer; or None, why it has certainly not taken it, and whether that lasts."""
        if entry.task.cancelling or entry.task.state.terminal:
            why = "cancelled" if entry.task.cancelling else "out of time"
            return None, f"{why} before it ran", False
        with trio.move_on_after(OFFER_S):
            try:
                secrets = await self.ledger.secrets_of(entry.task.id)
                return await self.peers.call(target, MakeOffer(offer=offer, secrets=secrets)), "", False
            except NodeUnreachableError as error:
                return None, "" if error.sent else error.detail, False
            except EdgeorchError as error:
                return None, str(error), True
        return None, "", False

    def _time_placing(self, entry: Entry) -> None:
        """Once for each task: a node has taken it for the first time."""
        if not _failed(entry.task):
            self.placed.since(entry.began)

    def say_placed(self, task: Task) -> None:
        """Once in the normal life of a task; what follows a failure is worth a warning."""
        attempt, failed = task.attempts[-1], _failed(task)
        facts = {"task": task.id, "attempt": attempt.number, "peer": attempt.node_name}
        if failed:
            last = failed[-1]
            log.warning("placed again", **facts, after=f"{last.state} on {last.node_name}: {last.reason}")
        else:
            log.info("placed", **facts)

    def _refuse(
        self, entry: Entry, number: int, node: str, reason: str, *, lasting: bool, pause_s: float = 0.0
    ) -> tuple[list[TaskChange], tuple[Effect, ...]]:
        self._remember(entry, node, reason, lasting=lasting, pause_s=pause_s)
        self.ledger.books.release(entry.task.id)
        return self.ledger.move_attempt(
            entry,
            number,
            AttemptState.REFUSED,
            reason=reason,
            cause="rejected",
            ended_at=self.seams.wall(),
        )

    def _remember(self, entry: Entry, node: str, reason: str, *, lasting: bool, pause_s: float = 0.0) -> None:
        known = Refused(reason, trio.current_time(), lasting, pause_s)
        entry.refused = {**entry.refused, node: known}

    async def _settle(self, entry: Entry, changes: Sequence[TaskChange], effects: Sequence[Effect]) -> None:
        try:
            await self.ledger.commit(entry, changes, effects)
        except StorageError as error:
            log.warning("cannot record a placement", task=entry.task.id, reason=str(error))

    def _settle_later(self, entry: Entry, changes: Sequence[TaskChange]) -> None:
        """Write soon that a node has taken the task. After a crash before that, reconcile asks the node."""
        if changes:
            self.ledger.put_off(entry, changes)
            self._taken.append(entry)
            self._some_taken.set()

    async def _write_taken(self) -> NoReturn:
        """Most tasks have gone on within the moment, and the disk knows already."""
        while True:
            await self._some_taken.wait()
            await trio.sleep(MOMENT_S)
            self._some_taken = trio.Event()
            taken, self._taken = self._taken, []
            parts: list[tuple[Entry, Sequence[TaskChange]]] = [(one, ()) for one in taken if one.put_off]
            try:
                if parts:
                    await self.ledger.commit_all(parts)
            except StorageError as error:
                log.warning("cannot record placements yet", count=len(parts), reason=str(error))


def _failed(task: Task) -> list[Attempt]:
    """The attempts before the newest one that were more than asked for."""
    return [one for one in task.attempts[:-1] if one.state is not AttemptState.REFUSED]
