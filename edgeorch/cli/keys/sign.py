"""Certificates for a whole play in one run."""

from pathlib import Path

import click
import msgspec

from edgeorch.cli.keys.options import open_authority, with_dir, with_fleet, with_passphrase
from edgeorch.cli.keys.reading import read_document
from edgeorch.cli.show import json_line
from edgeorch.identity.signing import Request


class _Requests(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    requests: tuple[Request, ...]


@click.command()
@with_fleet
@with_dir
@with_passphrase
@click.option("--check", is_flag=True, help="Sign and write nothing; only say which would be signed.")
def sign(*, fleet: str | None, folder: Path | None, passphrase_file: Path | None, check: bool) -> None:
    """Sign the keys that nodes have made.

    \b
    stdin:  {"requests": [{"name", "node_id", "public_key", "certificate", "addresses", "replace", "renew"}]}
    stdout: {"ca", "crl", "nodes": {NAME: {"certificate", "changed", "expires_at", "error"}}, "warnings": […]}

    A certificate that is good for more than 60 days, with the same key, names and CA, is kept.
    """  # noqa: D301  click's mark for lines that stay as they are
    authority = open_authority(folder, fleet, passphrase_file)
    json_line(authority.sign(read_document(_Requests).requests, check=check))
