"""``edgeorch submit``: hand in a spec from a file."""

from typing import Any

import click

from edgeorch.cli import options, show
from edgeorch.cli.spec import read_spec
from edgeorch.client.answers import Ranked
from edgeorch.client.endpoint import Endpoint
from edgeorch.errors import InvalidRequestError


@click.command(
    epilog="""\b
Examples:
  edgeorch submit resize.toml
  edgeorch submit --dry-run resize.json
  generate-specs | edgeorch submit --json -

A JSON list of specs is accepted as a whole or not at all."""
)
@click.argument("file", type=click.Path(allow_dash=True))
@click.option("--dry-run", is_flag=True, help="Show the ranking of nodes with reasons; run nothing.")
@click.option("--key", metavar="KEY", help="Idempotency-Key: handing in twice with one key is one task.")
@options.as_json
@options.fleet_command
def submit(endpoint: Endpoint, file: str, key: str | None, *, dry_run: bool, as_json: bool) -> int:
    """Hand in the task spec in FILE (JSON or TOML, - is stdin) and print the task's id."""
    from edgeorch.client.plain_client import Client

    spec = read_spec(file)
    with Client(endpoint=endpoint) as client:
        if dry_run:
            if isinstance(spec, list):
                raise InvalidRequestError("--dry-run takes one spec, this is a list")
            return _show_ranking(client.explain(spec), as_json=as_json)
        tasks = (
            client.submit_batch(spec, idempotency_key=key)
            if isinstance(spec, list)
            else (client.submit(spec, idempotency_key=key),)
        )
    for task in tasks:
        show.json_line(task) if as_json else click.echo(task.id)
    return 0


def ranking_rows(ranking: tuple[Ranked, ...]) -> list[tuple[Any, ...]]:
    """Cells of a ranking, best first: node, driver, score, why."""
    return [
        (
            line.node_name or line.node,
            line.driver or "-",
            "-" if line.refusal else f"{line.score.value:.3g}",
            line.refusal or ", ".join(line.score.reasons),
        )
        for line in ranking
    ]


def _show_ranking(ranking: tuple[Ranked, ...], *, as_json: bool) -> int:
    if as_json:
        show.json_line(ranking)
    else:
        show.table(("NODE", "DRIVER", "SCORE", "WHY"), ranking_rows(ranking))
    if any(not line.refusal for line in ranking):
        return 0
    show.say("edgeorch: no node fits now; handed in, the task would wait")
    return 1
