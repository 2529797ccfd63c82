"""The route of the audit trail: who did what, when and from where."""

from datetime import datetime
from typing import Annotated

import msgspec

from edgeorch.errors import InvalidRequestError
from edgeorch.model import Written, origin_of
from edgeorch.rest.backend import AuditPage, Backend
from edgeorch.rest.routes import Answer, Asked, Route, Shown, answer
from edgeorch.rest.tasks import TASK_ID
from edgeorch.rest.views import Document, Time, time_text
from edgeorch.store import AuditFilter, PutAudit

_TIME = r"^(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d))?$"


class AuditQuery(Written, frozen=True, kw_only=True):
    """Which records."""

    since: Annotated[str, msgspec.Meta(description="None that are older; RFC 3339.", pattern=_TIME)] = ""
    limit: Annotated[int, msgspec.Meta(description="At most so many.", ge=1, le=1000)] = 100
    cursor: Annotated[str, msgspec.Meta(description="Where the page before ended.", pattern=TASK_ID)] = ""
    local: Annotated[bool, msgspec.Meta(description="Only what the asked node has recorded.")] = False


class AuditDocument(Document, frozen=True, kw_only=True):
    """Something that was asked of a node."""

    id: str
    at: Time
    node: str
    """The node that did it, and recorded it in the same transaction where there is one."""
    node_name: str
    action: str
    """``submit``, ``cancel``, ``drain``, ``cordon``, ``resume``, ``forget`` or ``refused-login``."""
    subject: str
    """Id of the task, or name of the node."""
    detail: str
    """Name of the task; why logins were refused."""
    count: int
    """Of refused logins, which are recorded together."""
    token: str
    """Its name; ``anonymous`` for a caller on the node itself that has none, empty for refused logins."""
    role: str
    address: str
    """Of the caller, as the node saw it that checked the token; ``others`` where many were refused."""
    via: str
    """Id of the node that checked the token and passed the request on; empty where it is the same."""
    via_name: str


class AuditPageDocument(Document, frozen=True, kw_only=True):
    """Records, newest first."""

    records: tuple[AuditDocument, ...]
    cursor: str | None
    """Give it as ``cursor`` to get the next page; null on the last one."""
    unreachable: tuple[str, ...]
    """Names of the nodes that did not answer: their records are missing here."""


class AuditRoutes:
    """Serves ``/api/v1/audit``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def page(self, asked: Asked) -> Answer:
        """A page of records."""
        query: AuditQuery = asked.query
        which = AuditFilter(
            since=_seconds(query.since),
            before=query.cursor or None,
            limit=query.limit,
        )
        page = await self._backend.audited(which, asked.caller, local=query.local)
        return answer(
            AuditPageDocument(
                records=tuple(_document(record, page) for record in page.records),
                cursor=page.records[-1].id if page.more and page.records else None,
                unreachable=page.unreachable,
            )
        )

    def routes(self) -> tuple[Route, ...]:
        """The table."""
        return (
            Route(
                "GET",
                "/api/v1/audit",
                "listAudit",
                "admin",
                self.page,
                "Who did what in the fleet, newest first",
                {200: Shown("A page.", AuditPageDocument)},
                problems=(507,),
                query=AuditQuery,
                tag="audit",
            ),
        )


def _seconds(text: str) -> float:
    """Seconds since the epoch.

    Raises:
        InvalidRequestError: there is no such day or hour.
    """
    try:
        return datetime.fromisoformat(text.upper()).timestamp() if text else 0.0
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(f"query parameter since: {text!r}: {error}") from None


def _document(record: PutAudit, page: AuditPage) -> AuditDocument:
    node = origin_of(record.id)
    return AuditDocument(
        id=record.id,
        at=time_text(record.at),
        node=node,
        node_name=page.names.get(node, ""),
        action=record.action,
        subject=record.subject,
        detail=record.detail,
        count=record.count,
        token=record.token,
        role=record.role,
        address=record.address,
        via=record.via,
        via_name=page.names.get(record.via, ""),
    )
