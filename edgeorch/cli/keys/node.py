"""The node's side of keys, run there as root by the playbooks: the private key never leaves the machine."""

import socket
from pathlib import Path

import click
import msgspec

from edgeorch.cli.keys.reading import read_document
from edgeorch.cli.options import as_json
from edgeorch.cli.show import json_line, say
from edgeorch.identity.folder import NodeFolder

_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("/etc/edgeorch"),
    show_default=True,
    help="Where the node's files are.",
)


class _Signed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the controller sends back; PEM."""

    certificate: str
    ca: str
    crl: str = ""


@click.command()
@_folder
@click.option("--rotate", is_flag=True, help="Make a next key; `install` puts it in force.")
@click.option("--check", is_flag=True, help="Make nothing; only say what is there.")
@as_json
def request(*, folder: Path, rotate: bool, check: bool, as_json: bool) -> None:
    """Make this node's id and key where they are missing, and print the public key."""
    node = NodeFolder(folder)
    made = node.look(rotate=rotate) if check else node.request(rotate=rotate)
    if as_json:
        json_line(
            {
                "node_id": made.node_id,
                "public_key": made.public_key,
                "certificate": made.certificate,
                "crl": made.crl,
                "changed": made.changed,
                "hostname": socket.gethostname(),
            }
        )
        return
    say(f"Node {made.node_id}: its key is in {folder / 'pki'} and stays there; the public key:")
    click.echo(made.public_key, nl=False)
    say(f"Next, on the controller: edgeorch keys issue NAME --node-id {made.node_id} --public-key FILE")


@click.command()
@_folder
def install(*, folder: Path) -> None:
    """Put a certificate into force: stdin {"certificate", "ca", "crl"} in PEM, stdout {"changed"}.

    Reload the node afterwards. If this is interrupted, the node still starts, and the next run goes on.
    """
    signed = read_document(_Signed)
    changed = NodeFolder(folder).install(signed.certificate.encode(), signed.ca.encode(), signed.crl.encode())
    json_line({"changed": changed})
