"""``edgeorch tasks`` and ``edgeorch task show|output|cancel``."""

import click

from edgeorch.cli import options, show
from edgeorch.client.answers import Task
from edgeorch.client.calls import TaskFilter
from edgeorch.client.endpoint import Endpoint
from edgeorch.client.streams import Which

STATES = ("waiting", "placing", "running", "succeeded", "failed", "cancelled", "timed_out", "lost")
COLUMNS = ("ID", "NAME", "STATE", "NODE", "EXIT", "CREATED", "REASON")


@click.command(
    epilog="""\b
Examples:
  edgeorch tasks --state running
  edgeorch tasks --node attic --limit 5 --json"""
)
@click.option("--state", type=click.Choice(STATES), help="Only tasks in this state.")
@click.option("--name", metavar="NAME", help="Only tasks of this name.")
@click.option("--node", metavar="NODE", help="Only tasks that run or ran on this node.")
@click.option("--parent", metavar="ID", help="Only the children of this task.")
@click.option("--local", is_flag=True, help="Only tasks that the asked node accepted.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many, newest first."
)
@options.as_json
@options.fleet_command
def tasks(
    endpoint: Endpoint,
    *,
    state: str | None,
    name: str | None,
    node: str | None,
    parent: str | None,
    limit: int,
    local: bool,
    as_json: bool,
) -> None:
    """List the fleet's tasks, newest first."""
    from edgeorch.client.plain_client import Client

    which = TaskFilter(state=state, name=name, node=node, parent=parent, local=local, limit=limit)
    with Client(endpoint=endpoint) as client:
        page = client.tasks_page(which)
    if page.unreachable:
        show.say(f"edgeorch: incomplete: no answer from {', '.join(page.unreachable)}")
    if as_json:
        show.json_line(page)
    else:
        show.table(COLUMNS, [row_of(task) for task in page.tasks])


@click.group()
def task() -> None:
    """One task: show it, print its output, cancel it."""


@task.command("show")
@click.argument("task_id", metavar="ID")
@options.as_json
@options.fleet_command
def show_task(endpoint: Endpoint, task_id: str, *, as_json: bool) -> None:
    """Everything about a task: where it stands, why, and each attempt.

    Example: edgeorch task show 01jc6v1w5m2n9d4z8q7x3k0h6t-7m2k9q4x1c
    """
    from edgeorch.client.plain_client import Client

    with Client(endpoint=endpoint) as client:
        found = client.task(task_id)
    if as_json:
        show.json_line(found)
        return
    show.table(("WHAT", "IS"), list(_facts(found).items()))
    if found.attempts:
        click.echo()
        rows = [
            (
                str(one.number),
                one.node_name or one.node,
                one.driver,
                one.state,
                show.ago(one.started_at),
                _exit(one.exit_code, one.signal),
                one.reason,
            )
            for one in found.attempts
        ]
        show.table(("ATTEMPT", "NODE", "DRIVER", "STATE", "STARTED", "EXIT", "REASON"), rows)


@task.command("output")
@click.argument("task_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@click.option("--stream", type=click.Choice(["stdout", "stderr", "both"]), default="both", show_default=True)
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@click.option(
    "--attempt", type=click.IntRange(min=1), metavar="N", help="Of this attempt; default: the newest."
)
@options.as_json
@options.fleet_command
def output(
    endpoint: Endpoint,
    task_id: str,
    stream: Which,
    tail: int | None,
    attempt: int | None,
    *,
    follow: bool,
    as_json: bool,
) -> None:
    """Print what a task printed: its stdout to stdout, its stderr to stderr.

    Example: edgeorch task output --follow --tail 20 01jc6v1w5m2n9d4z8q7x3k0h6t-7m2k9q4x1c
    """
    from edgeorch.cli.printing import Printer
    from edgeorch.client.plain_client import Client

    printer = Printer(as_json=as_json)
    with (
        Client(endpoint=endpoint) as client,
        client.output(task_id, follow=follow, which=stream, tail=tail, attempt=attempt) as pieces,
    ):
        for piece in pieces:
            printer.write(piece)
    printer.finish()


@task.command("cancel")
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@options.as_json
@options.fleet_command
def cancel(endpoint: Endpoint, task_ids: tuple[str, ...], *, as_json: bool) -> None:
    """Cancel tasks: SIGTERM, a time of grace, then SIGKILL of the whole tree, or a container's stop.

    Example: edgeorch task cancel 01jc6v1w5m2n9d4z8q7x3k0h6t-7m2k9q4x1c
    """
    from edgeorch.client.plain_client import Client

    with Client(endpoint=endpoint) as client:
        for task_id in task_ids:
            found = client.cancel(task_id)
            if as_json:
                show.json_line(found)
            else:
                click.echo(
                    f"{found.id}\t{'cancelling' if found.cancelling and not found.ended else found.state}"
                )


def row_of(found: Task) -> tuple[str, ...]:
    """Cells of a task under ``COLUMNS``."""
    attempt = found.current
    return (
        found.id,
        found.name,
        found.state,
        (attempt.node_name or attempt.node) if attempt else "-",
        _exit(found.exit_code, attempt.signal if attempt else None),
        show.ago(found.created_at),
        found.reason,
    )


def _facts(found: Task) -> dict[str, str]:
    facts = {
        "id": found.id,
        "name": found.name,
        "state": found.state + (" (cancelling)" if found.cancelling and not found.ended else ""),
        "reason": found.reason,
        "created": f"{found.created_at:%Y-%m-%d %H:%M:%S} UTC ({show.ago(found.created_at)})",
        "ended": f"{found.ended_at:%Y-%m-%d %H:%M:%S} UTC" if found.ended_at else "",
        "exit code": _exit(found.exit_code, found.current.signal if found.current else None),
        "parent": found.parent or "",
    }
    return {name: value for name, value in facts.items() if value and value != "-"}


def _exit(code: int | None, signal: int | None) -> str:
    if signal:
        return f"signal {signal}"
    return "-" if code is None else str(code)
