"""What keeps a fleet's CA going: a fresh revocation list, and a new CA."""

from pathlib import Path
from typing import Literal

import click

from edgeorch.cli.keys.options import open_authority, with_dir, with_fleet, with_passphrase
from edgeorch.cli.options import as_json
from edgeorch.cli.show import json_line, say
from edgeorch.identity.signing import rfc3339


@click.command()
@with_fleet
@with_dir
@with_passphrase
@as_json
def crl(*, fleet: str | None, folder: Path | None, passphrase_file: Path | None, as_json: bool) -> None:
    """Sign the revocation list afresh where it ends within 60 days."""
    authority = open_authority(folder, fleet, passphrase_file)
    changed = authority.renew_list()
    now = authority.list_in_force()
    path, ends = authority.folder / "crl.pem", rfc3339(now.expires_at or 0)
    say(f"{path}: list {now.number}, until {ends}" + (", signed afresh" if changed else ""))
    if as_json:
        json_line({"number": now.number, "expires_at": ends, "changed": changed, "crl": str(path)})


@click.command("rotate-ca")
@click.argument("step", type=click.Choice(["begin", "reissue", "finish"]))
@click.option(
    "--node", "nodes", multiple=True, metavar="NAME", help="For finish: a node that must have it too."
)
@with_fleet
@with_dir
@with_passphrase
@as_json
def rotate_ca(
    *,
    step: Literal["begin", "reissue", "finish"],
    nodes: tuple[str, ...],
    fleet: str | None,
    folder: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Replace the fleet's CA in three steps, each followed by `sign` and `install` for every node.

    \b
    begin    make the new CA; all trust both
    reissue  sign with the new one
    finish   drop the old one; refused while a node has no certificate of the new one
    """  # noqa: D301  click's mark for lines that stay as they are
    authority = open_authority(folder, fleet, passphrase_file)
    rotation = authority.rotation()
    changed = True
    if step == "begin":
        changed = rotation.begin()
    elif step == "reissue":
        changed = rotation.reissue()
    else:
        rotation.finish(nodes)
    phase = rotation.phase
    pending = rotation.pending() if phase else []
    say(
        {
            "begin": "Two CAs are trusted, the old one signs. Next: give ca.pem to every node and client.",
            "reissue": "The new CA signs. Next: a new certificate for every node.",
            "": "The old CA is dropped. Next: give ca.pem to every node and client.",
        }[phase]
    )
    if phase == "reissue" and pending:
        say(f"Still with the old CA: {', '.join(pending)}")
    if as_json:
        fingerprints = list(authority.fingerprints)
        json_line({"phase": phase, "changed": changed, "ca_fingerprints": fingerprints, "pending": pending})
