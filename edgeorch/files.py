"""Small files that must be whole: read with a clear error, replaced in one step, changed by one at a time."""

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from edgeorch.errors import ConfigError, StorageError


def read(path: Path, what: str) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        what: its name for people, such as ``the node's key``.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        hint = "check its owner and permissions" if isinstance(error, PermissionError) else "check the path"
        raise ConfigError(f"{path}: cannot read {what}: {error.strerror}", hint=hint) from None


def read_optional(path: Path, what: str) -> bytes | None:
    """The content of a file that may be missing: then None.

    Raises:
        ConfigError: it is there and cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return read(path, what)


def small_text(path: Path, most: int) -> str:
    """A text file of at most so many bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or not UTF-8.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"larger than {most} bytes")
    return data.decode()


def write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file in one step: a reader sees the old or the new content, also after power loss.

    The group of an existing file is kept where the process may set it.

    Raises:
        StorageError: the folder cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            _write_new(fresh, data, mode, _group(path))
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        hint = "check the folder's permissions and the free space"
        raise StorageError(f"{path}: cannot write: {error.strerror}", hint=hint) from None


def remove(path: Path) -> None:
    """Remove a file for good; one that is not there is fine.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        path.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        hint = "check the folder's permissions"
        raise StorageError(f"{path}: cannot remove: {error.strerror}", hint=hint) from None


def move(source: Path, target: Path) -> None:
    """Give a file the name of another, which it replaces in one step, also after power loss.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        source.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        hint = "check the folder's permissions"
        raise StorageError(f"{target}: cannot replace: {error.strerror}", hint=hint) from None


def give(path: Path, mode: int, owner: tuple[int, int] | None) -> bool:
    """Set mode and owner.

    Args:
        path: a file or folder.
        mode: its permissions.
        owner: (user id, group id), or None to leave them.

    Returns:
        Whether anything was changed.

    Raises:
        StorageError: that is not allowed.
    """
    try:
        now = path.stat()
        same_owner = owner is None or owner == (now.st_uid, now.st_gid)
        if same_owner and stat.S_IMODE(now.st_mode) == mode:
            return False
        if owner is not None and not same_owner:
            os.chown(path, *owner)
        path.chmod(mode)
    except OSError as error:
        hint = "run it as root, or as the owner"
        raise StorageError(f"{path}: cannot set its permissions: {error.strerror}", hint=hint) from None
    return True


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Make a folder and its parents; an existing one is left as it is.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        hint = "choose another folder or check its permissions"
        raise StorageError(f"{path}: cannot make the folder: {error.strerror}", hint=hint) from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for oneself among the processes that also ask here; waits for the others.

    Raises:
        StorageError: the folder cannot be opened.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}", hint="check the path") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_new(path: Path, data: bytes, mode: int, group: int | None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        if group is not None:
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, -1, group)
        os.fchmod(descriptor, mode)
        file.flush()
        os.fsync(descriptor)


def _group(path: Path) -> int | None:
    try:
        return path.stat().st_gid
    except FileNotFoundError:
        return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
