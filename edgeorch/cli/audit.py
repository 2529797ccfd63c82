"""``edgeorch audit``: who did what in the fleet."""

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from edgeorch.cli import options, show
from edgeorch.cli.spec import Duration
from edgeorch.client.answers import AuditRecord
from edgeorch.client.endpoint import Endpoint

COLUMNS = ("WHEN", "NODE", "WHAT", "SUBJECT", "WHO", "ROLE", "FROM", "DETAIL")


class Moment(click.ParamType["datetime"]):
    """``2h`` ago, or ``2026-11-28T14:00Z``; a time without a zone is this machine's."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:  # noqa: ANN401
        """Text as a moment; one stays."""
        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(value).astimezone()
        except ValueError:
            pass
        try:
            return datetime.now(UTC) - timedelta(seconds=Duration().convert(value, param, ctx))
        except (click.BadParameter, OverflowError):
            self.fail(f"{value!r} is neither a time like 2026-11-28T14:00Z nor an age like 2h", param, ctx)


@click.command(
    epilog="""\b
Examples:
  edgeorch audit --since 2h
  edgeorch audit --since 2026-11-28 --limit 1000 --json"""
)
@click.option("--since", type=Moment(), metavar="TIME", help="Not older than this: 2h, or 2026-11-28T14:00Z.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Newest first.")
@click.option("--local", is_flag=True, help="Only what the asked node has recorded.")
@options.as_json
@options.fleet_command
def audit(endpoint: Endpoint, *, since: datetime | None, limit: int, local: bool, as_json: bool) -> None:
    """Show who submitted, cancelled, drained what, when and from where, and which logins were refused."""
    from edgeorch.client.plain_client import Client

    with Client(endpoint=endpoint) as client:
        page = client.audit(since=since, limit=limit, local=local)
    if page.unreachable:
        show.say(f"edgeorch: incomplete: no answer from {', '.join(page.unreachable)}")
    if as_json:
        show.json_line(page)
    else:
        show.table(COLUMNS, [row_of(record) for record in page.records])


def row_of(record: AuditRecord) -> tuple[str, ...]:
    """The cells of one record."""
    via = f" via {record.via_name or record.via}" if record.via else ""
    return (
        record.at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        record.node_name or record.node,
        record.action + (f" x{record.count}" if record.count > 1 else ""),
        record.subject or "-",
        record.token or "-",
        record.role if record.token else "-",
        f"{record.address or '-'}{via}",
        record.detail,
    )
