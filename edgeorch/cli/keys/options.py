"""Which fleet, where its CA is, and the passphrase of the CA's key."""

from pathlib import Path

import click

from edgeorch import files
from edgeorch.errors import ConfigError
from edgeorch.identity.authority import Authority

HOME = Path(".edgeorch")
"""Where a controller keeps its fleets: one folder each, below the current folder."""

with_fleet = click.option("--fleet", metavar="NAME", help="Which fleet, where this folder has several.")
with_dir = click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="The CA's folder (default: .edgeorch/FLEET)."
)
with_passphrase = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help="File whose first line is the passphrase of the CA's key.",
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


def open_authority(folder: Path | None, fleet: str | None, passphrase_file: Path | None) -> Authority:
    """The CA that the options name."""
    return Authority.open(folder or fleet_folder(fleet), passphrase=read_passphrase(passphrase_file))


def read_passphrase(path: Path | None) -> bytes | None:
    """The first line of a file; None for no file.

    Raises:
        ConfigError: it cannot be read, or the line is empty.
    """
    if path is None:
        return None
    lines = files.read(path, "the passphrase").splitlines()
    if not lines or not lines[0]:
        raise ConfigError(f"{path}: the first line is empty", hint="it must hold the passphrase")
    return lines[0]
