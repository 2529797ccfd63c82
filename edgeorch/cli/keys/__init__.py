"""``edgeorch keys``: the fleet's CA on the controller, and the files of each node."""

import click

from edgeorch.cli.keys.fleet import init, issue, revoke, show
from edgeorch.cli.keys.node import install, request
from edgeorch.cli.keys.options import HOME, fleet_folder
from edgeorch.cli.keys.recover import recover
from edgeorch.cli.keys.rotate import crl, rotate_ca
from edgeorch.cli.keys.sign import sign
from edgeorch.cli.keys.store import rotate_store

__all__ = ["HOME", "fleet_folder", "keys"]


@click.group()
def keys() -> None:
    """Make the fleet's CA and give every node its own key.

    On the controller: init, issue, sign, revoke, show, crl, rotate-ca, recover. On a node: request, install,
    rotate-store.
    """


for command in (init, issue, sign, revoke, show, crl, rotate_ca, recover, request, install, rotate_store):
    keys.add_command(command)
