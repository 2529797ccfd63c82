"""The CA on the controller: make it, issue and revoke by hand, and show what was issued."""

import time
from pathlib import Path
from typing import Any

import click

from edgeorch import files
from edgeorch.cli.keys.options import (
    HOME,
    open_authority,
    read_passphrase,
    with_dir,
    with_fleet,
    with_passphrase,
)
from edgeorch.cli.options import as_json
from edgeorch.cli.show import json_line, say, span, table
from edgeorch.identity.authority import Authority
from edgeorch.identity.index import Entry
from edgeorch.identity.issue import DAY, NODE_DAYS, WARN_DAYS
from edgeorch.identity.signing import rfc3339


@click.command()
@click.option("--fleet", required=True, metavar="NAME", help="The fleet's name.")
@with_dir
@with_passphrase
def init(fleet: str, folder: Path | None, passphrase_file: Path | None) -> None:
    """Make a new fleet CA. Keep its folder safe: whoever has ca.key can add nodes."""
    authority = Authority.create(folder or HOME / fleet, fleet, passphrase=read_passphrase(passphrase_file))
    if folder is None:
        # These folders hold keys, and often lie beside playbooks that are under version control.
        files.write(HOME / ".gitignore", b"*\n", 0o644)
    say(f"Fleet {fleet}: CA {authority.fingerprint[:16]}… in {authority.folder}")
    where = f" --dir {folder}" if folder else ""
    say(f"Next, for each node: edgeorch keys issue NODE --address ADDRESS{where}")


@click.command()
@click.argument("node")
@click.option("--address", "addresses", multiple=True, help="IP address or host name; may be repeated.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write (default: nodes/NODE in the CA's)."
)
@click.option("--replace", is_flag=True, help="Revoke the node that has this name now.")
@click.option(
    "--days", type=click.IntRange(1), default=NODE_DAYS, show_default=True, help="Until it expires."
)
@click.option("--public-key", type=click.Path(path_type=Path), help="Sign this key, made on the node (PEM).")
@click.option("--node-id", metavar="ID", help="Renew the certificate of this node id.")
@with_fleet
@with_dir
@with_passphrase
@as_json
def issue(
    *,
    node: str,
    addresses: tuple[str, ...],
    out: Path | None,
    replace: bool,
    days: int,
    public_key: Path | None,
    node_id: str | None,
    fleet: str | None,
    folder: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Issue the certificate of NODE and write a folder that can be copied to /etc/edgeorch on it."""
    if public_key and not node_id:
        raise click.UsageError("--public-key needs --node-id, the id that the node made for itself")
    authority = open_authority(folder, fleet, passphrase_file)
    issued = authority.issue(
        node,
        addresses,
        node_id=node_id,
        public_key=files.read(public_key, "the node's public key") if public_key else None,
        replace=replace,
        days=days,
    )
    out = out or authority.folder / "nodes" / node
    issued.write(out)
    say(f"Node {node} ({issued.entry.id}): certificate until {rfc3339(issued.entry.expires_at)} in {out}")
    if issued.key is not None:
        say(
            f"{out / 'pki' / 'node.key'} is the node's secret: copy it to the node only, then delete it here."
        )
    target = addresses[0] if addresses else "ADDRESS"
    at = f"[{target}]" if ":" in target else target
    say(f"Next: scp -r {out}/. root@{at}:/etc/edgeorch/   then start or reload edgeorch there")
    if as_json:
        json_line({**_row(issued.entry, time.time()), "folder": str(out)})


@click.command()
@click.argument("node")
@with_fleet
@with_dir
@with_passphrase
@as_json
def revoke(
    *, node: str, fleet: str | None, folder: Path | None, passphrase_file: Path | None, as_json: bool
) -> None:
    """Revoke every certificate of NODE (name or id)."""
    authority = open_authority(folder, fleet, passphrase_file)
    entry = authority.revoke(node)
    crl = authority.folder / "crl.pem"
    say(f"Node {entry.name} ({entry.id}) is revoked.")
    say(f"Next: scp {crl} root@ADDRESS:/etc/edgeorch/pki/crl.pem   and reload edgeorch there;")
    say("one node that is up is enough, the others take the list from it.")
    if as_json:
        json_line({**_row(entry, time.time()), "crl": str(crl)})


@click.command()
@with_fleet
@with_dir
@as_json
def show(*, fleet: str | None, folder: Path | None, as_json: bool) -> None:
    """Show the CA and what it has issued."""
    authority, now = open_authority(folder, fleet, None), time.time()
    index, rotation = authority.index(), authority.rotation()
    rows = [_row(entry, now) for entry in sorted(index.nodes, key=lambda entry: (entry.name, entry.id))]
    if as_json:
        json_line(
            {
                "fleet": index.fleet,
                "folder": str(authority.folder),
                "ca_fingerprint": authority.fingerprint,
                "ca_fingerprints": list(authority.fingerprints),
                "ca_expires_at": rfc3339(authority.not_after),
                "rotation": rotation.phase,
                "crl_number": index.crl_number,
                "nodes": rows,
            }
        )
        return
    say(f"Fleet {index.fleet}, CA {authority.fingerprint} until {rfc3339(authority.not_after)}")
    table(
        ("NAME", "ID", "STATE", "EXPIRES", "ADDRESSES"),
        [
            (row["name"], row["id"], row["state"], row["expires_at"], ", ".join(row["addresses"]) or "-")
            for row in rows
        ],
    )
    if rotation.phase:
        waiting = ", ".join(rotation.pending()) or "none"
        say(f"The CA is being changed: `rotate-ca {rotation.phase}` is done. Without the new one: {waiting}")
    if (left := authority.not_after - now) < WARN_DAYS * DAY:
        say(f"The CA expires in {span(left)}: rotate-keys.yml -e rotate_ca=true, or edgeorch keys rotate-ca")
    for entry in index.nodes:
        left = entry.expires_at - now
        if entry.revoked_at is None and 0 < left < WARN_DAYS * DAY:
            say(
                f"{entry.name} expires in {span(left)}: edgeorch keys issue {entry.name} --node-id {entry.id}"
            )


def _row(entry: Entry, now: float) -> dict[str, Any]:
    state = "expired" if entry.expires_at < now else "valid"
    return {
        "name": entry.name,
        "id": entry.id,
        "state": state if entry.revoked_at is None else "revoked",
        "expires_at": rfc3339(entry.expires_at),
        "addresses": list(entry.addresses),
    }
