"""Start one program: look it up, give it a clean environment, posix_spawn it."""

import errno
import os
import pwd
import resource
import signal
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeorch.runner.landlock import Landlock

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WORK_VARIABLE = "EDGEORCH_WORK"
"""Names the attempt's work folder to the service, and the service's processes to the runner."""
_PASSED_ON = ("LANG", "LC_ALL", "TZ")
_DEFAULT_SIGNALS = tuple(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
_SERVICE_UMASK = 0o022


class SpawnError(Exception):
    """The program cannot be started; the attributes are those of ``DriverError``."""

    def __init__(self, reason: str, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.hint = hint


def plain(own: Mapping[str, str]) -> dict[str, str]:
    """What every service has in its environment of the runner's ``own`` and of its user."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    passed_on = {name: own[name] for name in _PASSED_ON if name in own}
    return {**passed_on, "PATH": own.get("PATH") or DEFAULT_PATH, "USER": user, "LOGNAME": user}


def environment(plain: Mapping[str, str], asked: Mapping[str, str], work: str) -> dict[str, str]:
    """The service's whole environment: what all have, what was asked for, and the work folder."""
    return {**plain, "HOME": work, **asked, WORK_VARIABLE: work}


def marker(work: str) -> bytes:
    """The line of the environment that all processes of the attempt inherit unless they drop it."""
    return os.fsencode(f"{WORK_VARIABLE}={work}")


def find(name: str, path: str) -> str:
    """The program's file, found as a shell would; a name with a slash is relative to the current folder.

    Raises:
        SpawnError: ``no_program`` where there is none, ``no_permission`` where it may not be executed.
    """
    shown = _shorten(name)
    if not name:
        raise SpawnError("invalid_service", "argv[0] is empty", "name the program to run")
    places = [name] if "/" in name else [f"{folder}/{name}" for folder in path.split(":") if folder]
    for place in places:
        if os.access(place, os.X_OK) and stat.S_ISREG(os.stat(place).st_mode):
            return place
    for place in places:
        _refuse(shown, Path(place))
    if "/" in name:
        raise SpawnError("no_program", f"{shown}: no such program on this node", "check the path")
    raise SpawnError(
        "no_program", f"{shown}: no such program in PATH={_shorten(path)}", "install it or give its path"
    )


def _refuse(shown: str, place: Path) -> None:
    """Say why a file cannot be executed; nothing where there is no file.

    Raises:
        SpawnError: ``no_permission``.
    """
    at = _shorten(str(place))
    try:
        folder = place.is_dir()
        exists = place.exists()
    except PermissionError:
        reason = f"the runner's user may not look into the folder of {at}"
    except OSError:
        return
    else:
        if not exists:
            return
        reason = f"{at} is a folder" if folder else f"{at} is not executable by the runner's user"
    raise SpawnError("no_permission", f"{shown}: {reason}", "check mode and owner")


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    folders: Sequence[str],
    files: Sequence[int],
    *,
    open_files: int,
    landlock: "Landlock | None" = None,
) -> int:
    """Start the program as leader of a session of its own and return its pid.

    posix_spawn(3) has no attribute for the working folder, the file mode mask and the limit of open files,
    and a preexec function would mean a slow fork. Nothing else happens in the runner meanwhile, so it takes
    on the service's values for the moment of the call.

    Args:
        argv: program and arguments.
        env: the whole environment.
        folders: the program's own, the working folder first.
        files: descriptors that become stdin, stdout and stderr.
        open_files: the service's soft limit of open files.
        landlock: keeps the program out of other services' folders.

    Raises:
        SpawnError: with the reason.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    umask = os.umask(_SERVICE_UMASK)
    try:
        os.chdir(folders[0])
        # The kernel looks for itself where it is told the place.
        program = argv[0] if "/" in argv[0] else find(argv[0], env.get("PATH", DEFAULT_PATH))
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(files)]

        def start() -> int:
            return os.posix_spawn(
                program,
                tuple(argv),
                env,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=_DEFAULT_SIGNALS,
            )

        return start() if landlock is None else landlock.within(folders, start)
    except OSError as error:
        if "/" in argv[0]:
            find(argv[0], "")
        raise _explain(argv[0], error) from None
    except ValueError as error:
        # NUL in an argument, '=' in the name of a variable, text that is not UTF-8.
        raise SpawnError("invalid_service", f"{_shorten(argv[0])}: {error}") from None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.umask(umask)
        os.chdir("/")


def _explain(name: str, error: OSError) -> SpawnError:
    shown = _shorten(name)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            # The file itself was found, so it is what its first line names.
            return SpawnError(
                "no_program", f"{shown}: the interpreter that it names is missing", "install it"
            )
        case errno.ENOEXEC:
            detail = f"{shown}: not a program for this machine"
            return SpawnError(
                "no_program", detail, "scripts need a #! line, binaries the node's architecture"
            )
        case errno.EACCES | errno.EPERM:
            return SpawnError("no_permission", f"{shown}: {error.strerror}", "check mode and mount options")
        case errno.E2BIG:
            detail = f"{shown}: arguments and environment are too large for the system"
            return SpawnError("invalid_service", detail, "pass large data in a file or over the network")
        case errno.EAGAIN | errno.ENOMEM | errno.EMFILE | errno.ENFILE:
            return SpawnError("driver_unavailable", f"{shown}: {error.strerror}", "the node is at a limit")
        case _:
            return SpawnError("failed", f"{shown}: {error.strerror}")


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"
