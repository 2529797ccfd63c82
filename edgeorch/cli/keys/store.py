"""``edgeorch keys rotate-store``: a new key for the secrets in a node's database."""

from contextlib import closing
from pathlib import Path

import click
from cryptography.fernet import Fernet

from edgeorch import config, files
from edgeorch.cli.show import say
from edgeorch.errors import ConfigError, StorageError
from edgeorch.store import rows
from edgeorch.store.connection import connect_read_only, storage_errors
from edgeorch.store.sealing import FILE, Sealer, read_keys, write_keys


@click.command("rotate-store")
@click.option("--config", "path", type=click.Path(path_type=Path), help="The node's configuration file.")
@click.option("--drop-old", is_flag=True, help="Keep the newest key only, where nothing needs another.")
def rotate_store(*, path: Path | None, drop_old: bool) -> None:
    """On a node: seal the secrets of further tasks with a new key; the old ones still open theirs.

    Reload the node afterwards. An old backup of the database needs the store.key of its own time.
    """
    state = Path(config.load(path).config.node.state_dir)
    file = state / FILE
    keys = read_keys(file)
    if not keys:
        raise ConfigError(f"{file} is not there", hint="the node makes it at its first start")
    if drop_old:
        _check_unneeded(state / "edgeorch.db", keys[0])
        keys = keys[:1]
    else:
        keys = [Fernet.generate_key(), *keys]
    owner = file.stat()
    write_keys(file, keys)
    # Run by root, but the node must go on reading it.
    files.give(file, 0o600, (owner.st_uid, owner.st_gid))
    say(f"{file} holds {len(keys)} {'key' if len(keys) == 1 else 'keys'}; next: systemctl reload edgeorch")


def _check_unneeded(database: Path, newest: bytes) -> None:
    """Refuse to drop keys that open tasks still need."""
    sealer = Sealer([newest])
    with storage_errors(), closing(connect_read_only(database)) as connection:
        kept = rows.decode_all(rows.SECRETS, connection.execute("SELECT body FROM secrets"))
    for one in kept:
        try:
            sealer.open(one.task_id, one.sealed)
        except StorageError:
            raise ConfigError(
                f"task {one.task_id} still needs an older key", hint="wait until it has ended, or cancel it"
            ) from None
