"""``edgeorch nodes``, ``drain``, ``cordon`` and ``resume``."""

import click

from edgeorch.cli import options, show
from edgeorch.client.answers import Node
from edgeorch.client.calls import Action
from edgeorch.client.endpoint import Endpoint

COLUMNS = (
    "NODE",
    "STATE",
    "SCORE",
    "SLOTS",
    "DRIVERS",
    "ARCH",
    "CPUS",
    "MEMORY",
    "ADDRESS",
    "VERSION",
    "CERT",
)


@click.command(
    epilog="""\b
Examples:
  edgeorch nodes
  edgeorch nodes --why
  edgeorch nodes --json | jq -r '.[] | select(.state == "alive") | .name'"""
)
@click.option("--why", is_flag=True, help="Say how each score came about.")
@options.as_json
@options.fleet_command
def nodes(endpoint: Endpoint, *, why: bool, as_json: bool) -> None:
    """List the fleet's nodes, as the asked one sees them; * marks the asked one."""
    from edgeorch.client.plain_client import Client

    with Client(endpoint=endpoint) as client:
        found = client.nodes()
    if as_json:
        show.json_line(found)
    elif why:
        show.table(("NODE", "STATE", "SCORE", "WHY"), [(*row_of(node)[:3], _why(node)) for node in found])
    else:
        show.table(COLUMNS, [row_of(node) for node in found])


def row_of(node: Node) -> tuple[str, ...]:
    """Cells of a node under ``COLUMNS``."""
    drivers = [f"{name} {version}".strip() for name, version in sorted(node.drivers.items())]
    return (
        node.name + ("*" if node.is_self else ""),
        node.state,
        f"{node.score.value:.3g}",
        f"{node.slots_used}/{node.slots}",
        ", ".join(drivers) or "-",
        node.arch,
        str(node.cpus),
        show.size(node.memory),
        node.address,
        node.version,
        "-" if node.cert_days is None else f"{node.cert_days:.0f} d",
    )


def _why(node: Node) -> str:
    native = ", ".join(filter(None, (*node.limits, node.task_isolation)))
    services = f"native services: {native}" if native else ""
    return "; ".join(filter(None, (node.reason, *node.score.reasons, services))) or "-"


def _change(action: Action, explanation: str) -> click.Command:
    """A command that changes a node's state."""

    @click.command(action, help=explanation)
    @click.argument("node", default="self", metavar="[NODE]")
    @options.as_json
    @options.fleet_command
    def change(endpoint: Endpoint, node: str, *, as_json: bool) -> None:
        from edgeorch.client.plain_client import Client

        with Client(endpoint=endpoint) as client:
            changed = client.change_node(node, action)
        if as_json:
            show.json_line(changed)
        else:
            click.echo(f"{changed.name}\t{changed.state}")

    return change


_DEFAULT = "NODE (default: the asked node)"
drain = _change(
    "drain",
    f"Take nothing new on {_DEFAULT} and let what runs there end.\n\nExample: edgeorch drain attic",
)
cordon = _change(
    "cordon", f"Take nothing new on {_DEFAULT}; what runs goes on.\n\nExample: edgeorch cordon attic"
)
resume = _change("resume", f"Let {_DEFAULT} take tasks again.\n\nExample: edgeorch resume attic")
