"""``edgeorch keys``: the fleet's CA on the controller, and each node's certificate."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from edgeorch import files
from edgeorch.cli.options import as_json
from edgeorch.cli.show import json_line, say, span, table
from edgeorch.errors import ConfigError
from edgeorch.identity.authority import Authority
from edgeorch.identity.index import Entry
from edgeorch.identity.issue import NODE_DAYS

HOME = Path(".edgeorch")
"""Where a controller keeps its fleets: one folder each, below the current folder."""

_fleet = click.option("--fleet", metavar="NAME", help="Which fleet, where this folder has several.")
_dir = click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="The CA's folder (default: .edgeorch/FLEET)."
)
_passphrase = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help="File whose first line is the passphrase of the CA's key.",
)


@click.group()
def keys() -> None:
    """Make the fleet's CA and give every node its own key."""


@keys.command()
@click.option("--fleet", required=True, metavar="NAME", help="The fleet's name.")
@_dir
@_passphrase
def init(fleet: str, folder: Path | None, passphrase_file: Path | None) -> None:
    """Make a new fleet CA. Keep its folder safe: whoever has ca.key can add nodes."""
    authority = Authority.create(folder or HOME / fleet, fleet, passphrase=_read_passphrase(passphrase_file))
    if folder is None:
        # These folders hold keys, and often lie beside playbooks that are under version control.
        files.write(HOME / ".gitignore", b"*\n", 0o644)
    say(f"Fleet {fleet}: CA {authority.fingerprint[:16]}… in {authority.folder}")
    where = f" --dir {folder}" if folder else ""
    say(f"Next, for each node: edgeorch keys issue NODE --address ADDRESS{where}")


@keys.command()
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
@_fleet
@_dir
@_passphrase
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
    authority = _open(folder, fleet, passphrase_file)
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
    say(f"Node {node} ({issued.entry.id}): certificate until {_date(issued.entry.expires_at)} in {out}")
    if issued.key is not None:
        say(
            f"{out / 'pki' / 'node.key'} is the node's secret: copy it to the node only, then delete it here."
        )
    target = addresses[0] if addresses else "ADDRESS"
    at = f"[{target}]" if ":" in target else target
    say(f"Next: scp -r {out}/. root@{at}:/etc/edgeorch/   then start or reload edgeorch there")
    if as_json:
        json_line({**_row(issued.entry, time.time()), "folder": str(out)})


@keys.command()
@click.argument("node")
@_fleet
@_dir
@_passphrase
@as_json
def revoke(
    *, node: str, fleet: str | None, folder: Path | None, passphrase_file: Path | None, as_json: bool
) -> None:
    """Revoke every certificate of NODE (name or id)."""
    authority = _open(folder, fleet, passphrase_file)
    entry = authority.revoke(node)
    crl = authority.folder / "crl.pem"
    say(f"Node {entry.name} ({entry.id}) is revoked.")
    say(f"Next: scp {crl} root@ADDRESS:/etc/edgeorch/pki/crl.pem   and reload edgeorch there;")
    say("one node that is up is enough, the others take the list from it.")
    if as_json:
        json_line({**_row(entry, time.time()), "crl": str(crl)})


@keys.command()
@_fleet
@_dir
@as_json
def show(*, fleet: str | None, folder: Path | None, as_json: bool) -> None:
    """Show the CA and what it has issued."""
    authority, now = _open(folder, fleet, None), time.time()
    index = authority.index()
    rows = [_row(entry, now) for entry in sorted(index.nodes, key=lambda entry: (entry.name, entry.id))]
    if as_json:
        json_line(
            {
                "fleet": index.fleet,
                "folder": str(authority.folder),
                "ca_fingerprint": authority.fingerprint,
                "ca_expires_at": _date(authority.not_after),
                "crl_number": index.crl_number,
                "nodes": rows,
            }
        )
        return
    say(f"Fleet {index.fleet}, CA {authority.fingerprint} until {_date(authority.not_after)}")
    table(
        ("NAME", "ID", "STATE", "EXPIRES", "ADDRESSES"),
        [
            (row["name"], row["id"], row["state"], row["expires_at"], ", ".join(row["addresses"]) or "-")
            for row in rows
        ],
    )
    for entry in index.nodes:
        left = entry.expires_at - now
        if entry.revoked_at is None and 0 < left < 30 * 86_400:
            say(
                f"{entry.name} expires in {span(left)}: edgeorch keys issue {entry.name} --node-id {entry.id}"
            )


def fleet_folder(fleet: str | None) -> Path:
    """The CA's folder of a fleet below the current folder; the only one where no name is given.

    Raises:
        click.UsageError: there is none, or several.
    """
    if fleet:
        return HOME / fleet
    found = sorted(path.parent for path in HOME.glob("*/index.json"))
    if not found:
        how = "make one with `edgeorch keys init --fleet NAME`, or say where it is with --dir"
        raise click.UsageError(f"there is no fleet in {HOME.absolute()}: {how}")
    if len(found) > 1:
        raise click.UsageError(
            f"several fleets here, choose with --fleet: {', '.join(f.name for f in found)}"
        )
    return found[0]


def _open(folder: Path | None, fleet: str | None, passphrase_file: Path | None) -> Authority:
    return Authority.open(folder or fleet_folder(fleet), passphrase=_read_passphrase(passphrase_file))


def _read_passphrase(path: Path | None) -> bytes | None:
    if path is None:
        return None
    lines = files.read(path, "the passphrase").splitlines()
    if not lines or not lines[0]:
        raise ConfigError(f"{path}: the first line is empty", hint="it must hold the passphrase")
    return lines[0]


def _row(entry: Entry, now: float) -> dict[str, Any]:
    state = "expired" if entry.expires_at < now else "valid"
    return {
        "name": entry.name,
        "id": entry.id,
        "state": state if entry.revoked_at is None else "revoked",
        "expires_at": _date(entry.expires_at),
        "addresses": list(entry.addresses),
    }


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
