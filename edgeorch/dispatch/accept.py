"""From a decoded spec to a task on disk."""

from collections.abc import Sequence
from typing import NoReturn
from urllib.parse import urlsplit

import msgspec
import structlog
import trio

from edgeorch.constraints import parse
from edgeorch.dispatch.audit import SUBMIT, Audit, fields_of
from edgeorch.dispatch.ledger import Ledger
from edgeorch.dispatch.place import Placer
from edgeorch.dispatch.plan import Plan
from edgeorch.dispatch.requests import Idempotency, Submission
from edgeorch.dispatch.view import View
from edgeorch.errors import (
    InvalidRequestError,
    KeyReusedError,
    PolicyError,
    StorageError,
    TooLargeError,
    UnavailableError,
)
from edgeorch.executor.admission import SECRETS, Rules
from edgeorch.model import AttemptState, Caller, NativeService, Placement, Task, TaskSpec, TaskState
from edgeorch.seams import Tick
from edgeorch.secret import MAX_BYTES, size_of
from edgeorch.store import PutAudit, PutKey, PutMark, PutSecrets, TaskChange

log = structlog.get_logger()

KEY_LIFE_S = 86_400.0
SERVICE_ID = "service_id"
NUMBERS_AHEAD = 1000
"""ServiceIDs that the store sets aside at once, so that few requests write a mark."""
MAX_BATCH = 10_000
MAX_SPEC = 512 << 10
"""Bytes: an offer must fit into one frame between nodes."""


class Acceptor:
    """Validates, plans and commits submissions."""

    def __init__(self, ledger: Ledger, view: View, placer: Placer, rules: Rules, audit: Audit) -> None:
        self.audit = audit
        self.ledger = ledger
        self.view = view
        self.placer = placer
        self.rules = rules
        self._under_way: dict[tuple[str, str], trio.Event] = {}
        self._service_id = 0
        self._reserved = 0
        """Up to here the store gives no number out again."""
        self._untold: list[tuple[Task, PutAudit]] = []
        self._some_untold = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Tell the journal what was accepted, until cancelled; mostly after the answer."""
        task_status.started()
        try:
            while True:
                await self._some_untold.wait()
                self._some_untold = trio.Event()
                # A turn later: what runs here is started in between, and nothing comes back from it so soon.
                await trio.lowlevel.checkpoint()
                self._tell()
        finally:
            self._tell()

    def _tell(self) -> None:
        untold, self._untold = self._untold, []
        for task, record in untold:
            log.info("accepted", task=task.id, name=task.name, **fields_of(record))
            if task.attempts and task.attempts[-1].state is AttemptState.PREPARING:
                self.placer.say_placed(task)

    async def submit(
        self, submissions: Sequence[Submission], caller: Caller, idempotency: Idempotency | None
    ) -> tuple[Task, ...]:
        """See ``rest.backend.Backend.submit``."""
        if not submissions:
            raise InvalidRequestError("the list of tasks is empty", hint="send one spec or a list of specs")
        if len(submissions) > MAX_BATCH:
            raise InvalidRequestError(f"{len(submissions)} tasks in one request; {MAX_BATCH} are allowed")
        for index, one in enumerate(submissions):
            where = f"$[{index}]" if len(submissions) > 1 else "$"
            if len(one.raw) > MAX_SPEC:
                raise TooLargeError(
                    f"{where}: one task has {len(one.raw)} bytes; {MAX_SPEC} are allowed",
                    hint="put large data into files or a registry, and name them in the task",
                )
            _check_secrets(one, f"{where}.secrets")
            self.validate(one.spec, caller, where)
        if idempotency is None:
            return await self._commit(submissions, caller, None)
        scope = (caller.token, idempotency.key)
        while scope in self._under_way:
            await self._under_way[scope].wait()
        self._under_way[scope] = done = trio.Event()
        seams = self.ledger.seams
        try:
            known = await self.ledger.store.key(*scope, seams.wall(), seams.tick())
            sealer = self.ledger.sealer
            secret = any(one.secrets for one in submissions)
            if known is None:
                if secret:
                    body = sealer.fingerprint(idempotency.body)
                    idempotency = msgspec.structs.replace(idempotency, body=body)
                return await self._commit(submissions, caller, idempotency)
            if not (
                sealer.matches(known.body, idempotency.body) if secret else known.body == idempotency.body
            ):
                raise KeyReusedError(
                    f"the Idempotency-Key {idempotency.key!r} was used with another body",
                    hint="use a new key for a new request",
                )
            return await self._first_answer(known)
        finally:
            del self._under_way[scope]
            done.set()

    def validate(self, spec: TaskSpec, caller: Caller, where: str = "$") -> None:
        """What the types cannot say.

        Raises:
            InvalidRequestError: with the JSON path of what is wrong.
            PolicyError: this node's policy refuses every alternative, or the callback.
        """
        self._check_placement(spec.placement, f"{where}.placement")
        _printable(spec.name, f"{where}.name")
        if spec.callback_url is not None:
            self.rules.check_callback(_host_of(spec.callback_url, f"{where}.callback_url"), caller)
        refusals: list[PolicyError] = []
        for index, service in enumerate(spec.service):
            if isinstance(service, NativeService):
                _check_native(service, f"{where}.service[{index}]")
            elif not service.image.strip():
                raise InvalidRequestError(f"{where}.service[{index}].image is empty")
            try:
                self.rules.check(spec, service, caller)
            except PolicyError as refusal:
                refusals.append(refusal)
        if len(refusals) == len(spec.service):
            raise refusals[0]

    def _check_placement(self, place: Placement, where: str) -> None:
        for text in (*place.constraints, *(text for text, _ in place.prefer)):
            parse(text)
        if place.count != 1 and place.mode != "spread":
            raise InvalidRequestError(f"{where}.count: only mode 'spread' takes a count")
        if place.node is not None and place.mode != "best":
            raise InvalidRequestError(f"{where}.node: only mode 'best' takes a node")
        if place.node == self.view.node_id and not place.self_:
            raise InvalidRequestError(f"{where}: self is false, but node names this node")

    async def _first_answer(self, known: PutKey) -> tuple[Task, ...]:
        tasks = []
        for task_id in known.task_ids:
            entry = self.ledger.open.get(task_id)
            task = entry.task if entry else await self.ledger.store.task(task_id)
            if task is not None:
                tasks.append(task)
        return tuple(tasks)

    async def _commit(
        self, submissions: Sequence[Submission], caller: Caller, idempotency: Idempotency | None
    ) -> tuple[Task, ...]:
        if self.view.me.info.state == "draining" and not self.view.alive():
            raise UnavailableError("the node is draining and knows no other node", hint="ask another node")
        self.rules.check_tasks(caller, wanted=len(submissions), held=self.ledger.held[caller.token])
        # One moment for all: they are accepted together, and a deep queue keeps it once.
        at, tick = self.ledger.seams.wall(), self.ledger.seams.tick()
        plans: list[Plan] = []
        full: set[str] = set()
        changes: list[TaskChange] = []
        records: list[PutAudit] = []
        committed = False
        try:
            for submission in submissions:
                plans.append(self._plan(submission, caller, at, tick, full))
                changes.extend(plans[-1].changes)
                task = plans[-1].entry.task
                records.append(self.audit.record(caller, SUBMIT, task.id, task.name))
                if submission.secrets:
                    sealed = self.ledger.sealer.seal(task.id, submission.secrets)
                    changes.append(PutSecrets(task_id=task.id, sealed=sealed))
            if idempotency is not None:
                changes.append(
                    PutKey(
                        scope=caller.token,
                        key=idempotency.key,
                        body=idempotency.body,
                        task_ids=tuple(plan.entry.task.id for plan in plans),
                        expires_at=self.ledger.seams.wall() + KEY_LIFE_S,
                        expires_tick=self.ledger.seams.tick(KEY_LIFE_S),
                    )
                )
            changes.extend(records)
            marks = self._new_mark()
            changes.extend(marks)
            # A caller who goes away now must not leave memory and disk apart.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 60):
                await self.ledger.store.commit(changes)
                committed = True
                self._reserved = max((self._reserved, *(mark.number for mark in marks)))
            if not committed:
                raise StorageError("the disk did not take the task within 60 s", hint="check the disk")
        finally:
            if not committed:
                for plan in plans:
                    self.placer.undo(plan)
                    self.ledger.drop(plan.entry)
        self._carry_out(plans, records)
        if any(plan.placed for plan in plans):
            # Starts and offers are under way two turns later, and need not wait until an answer is prepared.
            for _ in range(2):
                await trio.lowlevel.checkpoint()
        return tuple(plan.entry.task for plan in plans)

    def _carry_out(self, plans: Sequence[Plan], records: Sequence[PutAudit]) -> None:
        for plan, record in zip(plans, records, strict=True):
            task = plan.entry.task
            self._untold.append((task, record))
            self.ledger.saved(plan.entry, task, plan.entry.revision)
            self.placer.carry_out(plan)
        if self._untold:
            self._some_untold.set()
        if any(not plan.placed and self.ledger.queue.hopeful(plan.entry) for plan in plans):
            self.placer.wake()

    def _plan(self, submission: Submission, caller: Caller, at: float, tick: Tick, full: set[str]) -> Plan:
        """``full``: shapes of which another of this moment has found no place."""
        spec = submission.spec
        service_id = None
        if submission.service_id:
            service_id = self._next_service_id()
        task = Task(
            id=self.ledger.ids.new(self.view.node_id),
            name=spec.name,
            state=TaskState.WAITING,
            origin=self.view.node_id,
            caller=caller,
            created_at=at,
            created_tick=tick,
            spec=submission.raw,
            priority=spec.priority,
            requires=(SECRETS,) if spec.secrets else (),
            service_id=service_id,
        )
        entry = self.ledger.admit(task, spec)
        if entry.shape in full or self.ledger.queue.ahead(entry.shape, spec.priority):
            entry.update(reason="others of its kind wait before it")
            plan = Plan(entry)
        else:
            plan = self.placer.plan(entry)
            if not plan.placed and not entry.refused:
                full.add(entry.shape)
        if not plan.changes:
            plan.changes = self.ledger.state_changes(entry)
        return plan

    def _next_service_id(self) -> int:
        """Never the same number twice, over restarts too, and with the clock set back.

        It starts at the milliseconds since the epoch, for a store that was restored from a backup.
        """
        if not self._service_id:
            mark = self.ledger.store.marks.get(SERVICE_ID, 0)
            self._service_id = max(mark, int(self.ledger.seams.wall() * 1000))
        self._service_id += 1
        return self._service_id

    def _new_mark(self) -> tuple[PutMark, ...]:
        """What to commit with a ServiceID that no mark on the disk covers."""
        if self._service_id <= self._reserved:
            return ()
        return (PutMark(name=SERVICE_ID, number=self._service_id + NUMBERS_AHEAD),)


def _check_secrets(submission: Submission, where: str) -> None:
    empty = sorted(submission.spec.secrets.keys() - submission.secrets.keys())
    if empty:
        hint = "nodes show no secrets, so a task that was read from one does not hold them"
        raise InvalidRequestError(f"{where}.{empty[0]} has no value", hint=hint)
    size = size_of(submission.secrets)
    if size > MAX_BYTES:
        raise TooLargeError(
            f"{where}: the secrets of one task have {size} bytes; {MAX_BYTES} are allowed",
            hint="hand over a key, and let the service fetch what it opens",
        )


def _check_native(service: NativeService, where: str) -> None:
    if not service.argv[0].strip():
        raise InvalidRequestError(f"{where}.argv[0] is empty", hint="name the program to run")
    for index, text in enumerate(service.argv):
        if "\0" in text:
            raise InvalidRequestError(f"{where}.argv[{index}] contains a NUL character")
    for name, value in service.env.items():
        if "=" in name or "\0" in name or "\0" in value:
            raise InvalidRequestError(f"{where}.env: {name!r} is not a name for a variable")
        if name.startswith("EDGEORCH_"):
            raise InvalidRequestError(f"{where}.env: {name!r} is set by edgeorch itself")


def _printable(text: str, where: str) -> None:
    if not text.isprintable() or not text.strip():
        raise InvalidRequestError(f"{where} must be printable text")


def _host_of(url: str, where: str) -> str:
    """The host of a callback's URL."""
    _printable(url, where)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidRequestError(f"{where}: {error}") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise InvalidRequestError(f"{where} must be an http or https URL with a host")
    if parts.username is not None:
        raise InvalidRequestError(f"{where} must not hold a user name or password")
    return host
