"""A new CA where the old one is lost."""

import time
from pathlib import Path

import click
import msgspec

from edgeorch.cli.keys.options import HOME, read_passphrase, with_dir, with_passphrase
from edgeorch.cli.keys.reading import read_document
from edgeorch.cli.show import json_line, say
from edgeorch.identity.recovery import recover as recover_ca


class _Nodes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    nodes: tuple[str, ...]
    """Of each node its ca.pem and crl.pem in one text."""


@click.command()
@click.option("--fleet", required=True, metavar="NAME", help="The fleet's name.")
@with_dir
@with_passphrase
def recover(*, fleet: str, folder: Path | None, passphrase_file: Path | None) -> None:
    """Make a new CA for a fleet whose CA is lost: stdin {"nodes": [ca.pem and crl.pem of each]}.

    It is in force after `rotate-ca reissue` and `finish`, as any new CA.
    """
    nodes, passphrase = read_document(_Nodes).nodes, read_passphrase(passphrase_file)
    ca = recover_ca(folder or HOME / fleet, fleet, nodes, passphrase=passphrase, wall=time.time)
    say(f"A new CA of {fleet} is in {ca.folder}. Next: give ca.pem to every node, then rotate-ca reissue.")
    json_line({"folder": str(ca.folder), "changed": True})
