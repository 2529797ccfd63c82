"""``edgeorch top``: nodes and what runs, drawn again and again."""

import sys
import time
from typing import Any

import click

from edgeorch.cli import nodes, options, show, tasks
from edgeorch.client.answers import Node, Task
from edgeorch.client.calls import TaskFilter
from edgeorch.client.endpoint import Endpoint
from edgeorch.errors import UnavailableError

NODE_COLUMNS = nodes.COLUMNS[:5]


@click.command(epilog="Example: edgeorch top --every 1")
@click.option(
    "--every", type=click.FloatRange(min=0.2), default=2.0, show_default=True, help="Seconds between looks."
)
@options.as_json
@options.fleet_command
def top(endpoint: Endpoint, *, every: float, as_json: bool) -> None:
    """Watch nodes and running tasks until Ctrl-C; in a pipe or with --json: one look."""
    from edgeorch.client.plain_client import Client

    with Client(endpoint=endpoint) as client:

        def look() -> tuple[tuple[Node, ...], tuple[Task, ...]]:
            found = client.tasks_page(TaskFilter(limit=100)).tasks
            # What is not over comes first, else newest first.
            return client.nodes(), tuple(sorted(found, key=lambda task: task.ended))

        if as_json:
            seen_nodes, seen_tasks = look()
            show.json_line({"nodes": seen_nodes, "tasks": seen_tasks})
        elif not sys.stdout.isatty():
            seen_nodes, seen_tasks = look()
            show.table(NODE_COLUMNS, [nodes.row_of(node)[:5] for node in seen_nodes])
            click.echo()
            show.table(tasks.COLUMNS, [tasks.row_of(task) for task in seen_tasks])
        else:
            _watch(look, every)


def _watch(look: Any, every: float) -> None:  # noqa: ANN401  the function above
    """Draw until Ctrl-C. A node that is away for a moment is said, not the end."""
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(highlight=False, no_color=not show.colourful())
    drawn: Any = ""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                try:
                    seen_nodes, seen_tasks = look()
                    room = max(3, console.height - len(seen_nodes) - 5)
                    drawn = Group(
                        show.rich_table(NODE_COLUMNS, [nodes.row_of(node)[:5] for node in seen_nodes]),
                        "",
                        show.rich_table(tasks.COLUMNS, [tasks.row_of(task) for task in seen_tasks[:room]]),
                    )
                    live.update(drawn, refresh=True)
                except UnavailableError as error:
                    live.update(Group(f"no answer, trying again: {error.detail}", drawn), refresh=True)
                time.sleep(every)
        except KeyboardInterrupt:
            return
