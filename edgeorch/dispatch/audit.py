"""Who did what, when and from where: kept with what was done, told to the journal, read by administrators."""

from collections.abc import Sequence
from typing import NoReturn

import structlog
import trio

from edgeorch.dispatch.gather import newest
from edgeorch.dispatch.requests import AuditPage
from edgeorch.dispatch.view import View
from edgeorch.errors import EdgeorchError, StorageError
from edgeorch.model import Caller, number_of, origin_of, ulid_of
from edgeorch.seams import Seams
from edgeorch.store import AuditFilter, LocalStore, PutAudit
from edgeorch.wire import Peers
from edgeorch.wire.messages import AuditFound, ListAudit

log = structlog.get_logger()

SUBMIT, CANCEL, FORGET, REFUSED = "submit", "cancel", "forget", "refused-login"
ASK_S = 3.0
WINDOW_S = 300.0
"""Refused logins of so much time become one record for each source: guesses must not fill the trail."""
SOURCES = 16
"""Sources with a record of their own in one window; all others share one."""
OTHERS = "others"
LONGEST = 200
"""Letters of a subject or detail."""


class Audit:
    """This node's trail, and the way to those of others."""

    def __init__(self, store: LocalStore, view: View, peers: Peers, seams: Seams) -> None:
        self._store = store
        self._view = view
        self._peers = peers
        self._seams = seams
        self._written = 0
        self._newest = 0
        """Milliseconds in the newest id: ids only grow, whatever the clock does."""
        self._named = False
        """Whether records of an older release have ids by now."""
        self._refused: dict[str, tuple[int, str]] = {}
        """By source: how often since the last record, and why at last."""

    async def load(self) -> None:
        """Go on above the ids that are on the disk.

        Raises:
            StorageError: the store cannot be read.
        """
        for record in await self._store.audit(AuditFilter(limit=1)):
            self._newest = number_of(record.id) >> 80

    def record(self, caller: Caller, action: str, subject: str, detail: str = "", count: int = 1) -> PutAudit:
        """A record, to be committed with what it tells of."""
        now = self._seams.wall()
        self._written += 1
        self._newest = max(self._newest, int(now * 1000))
        return PutAudit(
            # Boot and number are used once, so no chance is needed to tell two records of a moment apart.
            id=ulid_of(self._newest << 80 | self._store.boot << 48 | self._written, self._view.node_id),
            at=now,
            token=caller.token,
            role=caller.role,
            address=caller.address,
            via=caller.via,
            action=action,
            subject=subject[:LONGEST],
            detail=detail[:LONGEST],
            count=count,
        )

    async def keep(self, *records: PutAudit) -> None:
        """Commit records of what has no transaction of its own, before it is done.

        Raises:
            StorageError: it must not be done.
        """
        await self._store.commit(records)
        for record in records:
            self.say(record)

    @staticmethod
    def say(record: PutAudit) -> None:
        """Tell the journal: ``journalctl -u edgeorch EDGEORCH_AUDIT=cancel``."""
        log.info("asked", subject=record.subject, **fields_of(record))

    def login_refused(self, source: str, why: str) -> None:
        """Count a refused login; the log has each of them as far as it is not flooded."""
        if source not in self._refused and len(self._refused) >= SOURCES:
            source = OTHERS
        self._refused[source] = (self._refused.get(source, (0, ""))[0] + 1, why)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Write down refused logins until cancelled, the last of them at the end."""
        task_status.started()
        try:
            while True:
                await self._name_old()
                await trio.sleep(WINDOW_S)
                await self.flush()
        finally:
            with trio.move_on_after(2, shield=True):
                await self.flush()

    async def _name_old(self) -> None:
        """Records of the first release had no id; without one nobody can list them."""
        if self._named:
            return
        try:
            if count := await self._store.name_audit(self._view.node_id):
                log.info("took over audit records of an older release", count=count)
            self._named = True
        except StorageError as error:
            log.warning("cannot take over audit records of an older release yet", reason=str(error))

    async def flush(self) -> None:
        """Write down the logins that were refused since the last time."""
        taken, self._refused = self._refused, {}
        records = [
            self.record(Caller(token="", role="none", address=source), REFUSED, "", why, count)
            for source, (count, why) in taken.items()
        ]
        try:
            await self._store.commit(records)
        except StorageError as error:
            log.warning("cannot record refused logins yet", reason=str(error))
            for source, (count, why) in taken.items():
                self._refused[source] = (self._refused.get(source, (0, ""))[0] + count, why)
            return
        for record in records:
            log.info("refused logins", detail=record.detail, count=record.count, **fields_of(record))

    async def here(self, which: AuditFilter) -> list[PutAudit]:
        """This node's own records, newest first, refused logins up to now among them."""
        await self.flush()
        return await self._store.audit(which)

    async def page(self, which: AuditFilter, caller: Caller, *, local: bool) -> AuditPage:
        """Records of this node or of all that answer, newest first."""

        async def ask(node: str) -> tuple[list[PutAudit], bool] | None:
            answer = await self._ask(node, ListAudit(caller=caller, which=which))
            if answer is None:
                return None
            return [record for record in answer.records if _written_by(record, node)], answer.more

        own = await self.here(which)
        peers = () if local else self._view.membership.snapshot().values()
        page = await newest(own, peers, ask, which.limit)
        return AuditPage(
            records=page.rows,
            names=self._names(page.rows),
            unreachable=page.unreachable,
            more=page.more or len(page.rows) == which.limit,
        )

    def _names(self, records: Sequence[PutAudit]) -> dict[str, str]:
        ids = {origin_of(record.id) for record in records} | {record.via for record in records if record.via}
        return {node_id: self._view.name_of(node_id) for node_id in ids}

    async def _ask(self, node: str, request: ListAudit) -> AuditFound | None:
        answer: AuditFound | None = None
        with trio.move_on_after(ASK_S):
            try:
                answer = await self._peers.call(node, request)
            except EdgeorchError as error:
                log.debug("a node did not tell its records", node=node, reason=str(error))
        return answer


def fields_of(record: PutAudit) -> dict[str, str]:
    """What the journal can be searched by."""
    said = {"token": record.token, "role": record.role, "address": record.address, "via": record.via}
    return {"audit": record.action, **{name: value for name, value in said.items() if value}}


def _written_by(record: PutAudit, node: str) -> bool:
    """Whether a node tells its own record: it may not speak for others."""
    try:
        return origin_of(record.id) == node
    except ValueError:
        return False
