"""``edgeorch status``: is my fleet fine?"""

from collections import Counter
from collections.abc import Sequence

import click

from edgeorch.cli import options, show
from edgeorch.client.answers import Node, Task
from edgeorch.client.calls import TaskFilter
from edgeorch.client.endpoint import Endpoint

WARN_DAYS = 60
"""As ``edgeorch.identity.WARN_DAYS``; loading that package would be felt at each start of this command."""
RECENT = 200


@click.command(epilog="Exit code 1 when something needs a look.\n\nExample: edgeorch status && echo fine")
@options.as_json
@options.fleet_command
def status(endpoint: Endpoint, *, as_json: bool) -> int:
    """One screen: is my fleet fine?"""
    from edgeorch.client.plain_client import Client

    with Client(endpoint=endpoint) as client:
        nodes = client.nodes()
        page = client.tasks_page(TaskFilter(limit=RECENT))
    problems = [*problems_of(nodes), *(f"{name}: its tasks cannot be listed" for name in page.unreachable)]
    counts = Counter(task.state for task in page.tasks)
    waiting = waiting_of(page.tasks)
    if as_json:
        show.json_line(
            {"fine": not problems, "problems": problems, "nodes": nodes, "tasks": counts, "waiting": waiting}
        )
    else:
        _show(nodes, counts, waiting, problems)
    return 1 if problems else 0


def problems_of(nodes: Sequence[Node]) -> list[str]:
    """What needs a look, one sentence each. A node that left on purpose does not."""
    found = []
    for node in nodes:
        if node.state in {"suspect", "dead"}:
            found.append(f"{node.name}: {node.state}" + (f": {node.reason}" if node.reason else ""))
        if node.cert_days is not None and node.cert_days < WARN_DAYS and node.state != "left":
            days = f"{max(node.cert_days, 0):.0f}"
            found.append(
                f"{node.name}: certificate ends in {days} days; run deploy.yml, or `edgeorch keys issue`"
            )
    if len({node.version for node in nodes if node.state not in {"dead", "left"}}) > 1:
        found.append(
            "nodes run different versions: " + ", ".join(f"{node.name} {node.version}" for node in nodes)
        )
    return found


def waiting_of(tasks: Sequence[Task]) -> list[str]:
    """What waiting tasks wait for."""
    return [
        f"{task.name} ({task.id}): {task.reason or 'waiting'}" for task in tasks if task.state == "waiting"
    ]


def _show(nodes: Sequence[Node], counts: Counter[str], waiting: list[str], problems: list[str]) -> None:
    alive = sum(node.state not in {"dead", "left", "suspect"} for node in nodes)
    used, slots = sum(node.slots_used for node in nodes), sum(node.slots for node in nodes)
    click.echo(f"{alive} of {len(nodes)} nodes alive, {used} of {slots} slots in use")
    tasks = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in counts.most_common())
    click.echo(f"tasks: {tasks or 'none'}")
    click.echo()
    rows = [
        (node.name, node.state, f"{node.score.value:.3g}", f"{node.slots_used}/{node.slots}")
        for node in nodes
    ]
    show.table(("NODE", "STATE", "SCORE", "SLOTS"), rows)
    for title, lines in (("waiting", waiting[:10]), ("needs a look", problems)):
        if lines:
            click.echo(f"\n{title}:")
            for line in lines:
                click.echo(f"  {line}")
    if not problems:
        click.echo("\nall fine")
