"""Secrets at rest: encrypted by a key that lies beside the database, in a file of its own.

``store.key`` holds one Fernet key a line (cryptography.io/en/latest/fernet). The first one seals, all of them
open, so that a new key can be put before the old one while tasks still wait. The file belongs into the backup
of the state folder; certificates come and go without it.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from edgeorch import files
from edgeorch.errors import ConfigError, StorageError
from edgeorch.model import Kept
from edgeorch.secret import Secret

FILE = "store.key"
_HINT = "restore store.key from the backup of the state folder"


class _Sealed(Kept, frozen=True, kw_only=True):
    """What is encrypted: the task's name keeps one task's secrets from being passed off as another's."""

    task_id: str
    secrets: dict[str, Secret]


class Sealer:
    """Seals with the first key, opens with any.

    Args:
        keys: Fernet keys.

    Raises:
        ValueError: one of them is none.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = tuple(keys)
        self._fernet = MultiFernet([Fernet(key) for key in self._keys])

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The keys of a state folder; the first one is made where there is none.

        Raises:
            ConfigError: the file cannot be used.
            StorageError: it cannot be written.
        """
        path = folder / FILE
        keys = read_keys(path)
        if not keys:
            keys = [Fernet.generate_key()]
            write_keys(path, keys)
        return cls(keys)

    def reload(self, folder: Path) -> None:
        """Take a changed file into use.

        Raises:
            ConfigError: it cannot be used; the keys that were read before stay in force.
        """
        keys = read_keys(folder / FILE)
        if not keys:
            raise ConfigError(f"{folder / FILE} is gone", hint=_HINT)
        self._keys = tuple(keys)
        self._fernet = MultiFernet([Fernet(key) for key in self._keys])

    def seal(self, task_id: str, secrets: Mapping[str, Secret]) -> bytes:
        """What goes into the database."""
        return self._fernet.encrypt(msgspec.msgpack.encode(_Sealed(task_id=task_id, secrets=dict(secrets))))

    def open(self, task_id: str, sealed: bytes | None) -> dict[str, Secret]:
        """The secrets of a task.

        Raises:
            StorageError: they are gone, or none of the keys has sealed them.
        """
        if sealed is None:
            raise StorageError(f"the secrets of task {task_id} are not in the store", hint="submit it again")
        try:
            found = msgspec.msgpack.decode(self._fernet.decrypt(sealed), type=_Sealed)
        except (InvalidToken, msgspec.MsgspecError):
            raise StorageError(
                f"the secrets of task {task_id} were sealed with another store.key", hint=_HINT
            ) from None
        if found.task_id != task_id:
            raise StorageError(f"the secrets in the row of task {task_id} are another task's", hint=_HINT)
        return found.secrets

    def fingerprint(self, digest: bytes) -> bytes:
        """A digest of something secret, so that who has the database alone cannot try guesses."""
        return _keyed(self._keys[0], digest)

    def matches(self, fingerprint: bytes, digest: bytes) -> bool:
        """Whether the fingerprint is this digest's, by any key."""
        return any(hmac.compare_digest(fingerprint, _keyed(key, digest)) for key in self._keys)


def read_keys(path: Path) -> list[bytes]:
    """The keys in a file, newest first; none where there is no file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    text = files.read_optional(path, "the store's key")
    if text is None:
        return []
    keys = text.split()
    try:
        for key in keys:
            Fernet(key)
    except ValueError:
        raise ConfigError(f"{path}: a line is no key of the store", hint=_HINT) from None
    if not keys:
        raise ConfigError(f"{path} is empty", hint=_HINT)
    return keys


def write_keys(path: Path, keys: Sequence[bytes]) -> None:
    """Replace the file.

    Raises:
        StorageError: it cannot be written.
    """
    files.write(path, b"".join(key + b"\n" for key in keys), 0o600)


def _keyed(key: bytes, digest: bytes) -> bytes:
    return hmac.digest(key, b"idempotency " + digest, hashlib.sha256)
