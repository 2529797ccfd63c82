"""``python -m edgeorch.runner``: serve until SIGTERM, end what runs, exit 0."""

import argparse
import contextlib
import fcntl
import gc
import os
import pwd
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeorch import __version__
from edgeorch.errors import ConfigError
from edgeorch.runner import loop as loops
from edgeorch.runner.attempts import Attempts, log
from edgeorch.runner.limits import Limits
from edgeorch.runner.processes import Processes
from edgeorch.runner.protocol import Welcome
from edgeorch.runner.records import Records
from edgeorch.runner.server import Server
from edgeorch.secret_files import SecretFiles

if TYPE_CHECKING:
    from edgeorch.runner.landlock import Landlock

EX_CONFIG = 78
MAX_PROCESSES = 4096
"""As TasksMax in the unit, which does not hold where the runner was started by hand."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the runner; the process's exit code.

    ``listening`` on stdout says that the socket takes connections.
    """
    options = _parser().parse_args(arguments)
    try:
        allowed = {0, *(_uid(name) for name in options.allow or [str(os.getuid())])}
        work_dir = _claim(options.work_dir.absolute())
    except ConfigError as error:
        log(str(error))
        return EX_CONFIG
    # Descriptors that a parent left open are no business of the services.
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) > 2 and entry.exists():
            os.set_inheritable(int(entry.name), False)
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    processes = Processes(options.max_processes)
    if not processes.kept:
        log(
            "nothing bounds how many processes services start: run the node as a user of its own, not as root"
        )
    loops.adopt_orphans()
    loops.forbid_tracing()
    loop = loops.Loop()
    records = Records(work_dir)
    os.umask(records.umask)
    limits = Limits.detect()
    landlock = _landlock(options.close) if options.close else None

    def leave() -> None:
        attempts.shutdown(options.grace_s)

    server = Server(loop, options.socket.absolute(), allowed, options.linger_s, leave)
    secrets = SecretFiles(options.socket.absolute().parent / "secrets")
    attempts = Attempts(loop, records, secrets, limits, landlock, on_exit=server.tell_exit)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.on_signal(number, leave)
    welcome = Welcome(
        pid=os.getpid(),
        uid=os.getuid(),
        version=__version__,
        work_dir=str(work_dir),
        limits=limits.kept + processes.kept,
        isolation="none" if landlock is None else "landlock",
        no_secrets=secrets.missing,
        queues=True,
    )
    try:
        server.listen(attempts, welcome)
    except OSError as error:
        log(f"{options.socket}: {error.strerror or error} ({_me()} must be able to write; keep it short)")
        return EX_CONFIG
    _announce()

    # What has been loaded by now is there to stay.
    gc.freeze()

    def after_round() -> None:
        server.forget_unasked()
        attempts.after_round()
        server.start_waiting()
        server.flush()
        # Told before it is written: a disk that is busy with somebody's fsync would delay every exit.
        records.write()

    loop.run(after_round)
    server.close()
    processes.leave()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgeorch-runner", description="Starts native services for edgeorch."
    )
    parser.add_argument("--socket", type=Path, required=True, help="where daemons connect")
    parser.add_argument("--work-dir", type=Path, required=True, help="where the attempts' folders are made")
    parser.add_argument(
        "--allow",
        action="append",
        metavar="USER",
        help="name or number of a user to serve besides root; default: own",
    )
    parser.add_argument(
        "--close",
        action="append",
        type=Path,
        metavar="FOLDER",
        help="keep services out of this folder but for their own work folder, where the kernel has Landlock",
    )
    parser.add_argument(
        "--max-processes",
        type=int,
        default=MAX_PROCESSES,
        metavar="N",
        help="how many more threads its user, for root all services, may have than now (default %(default)s)",
    )
    parser.add_argument("--grace-s", type=float, default=5.0, help="between SIGTERM and SIGKILL at the end")
    parser.add_argument(
        "--linger-s", type=float, help="end when nobody was connected for so long; default: never"
    )
    return parser


def _uid(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(f"--allow {name}: no such user", hint="create it or give a number") from None


def _claim(work_dir: Path) -> Path:
    """Lock the work folder for the life of this process: two runners would end each other's services."""
    try:
        work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(work_dir, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"{work_dir}: another runner uses this folder", hint="stop it first") from None
    except OSError as error:
        raise ConfigError(
            f"{work_dir}: {error.strerror}", hint=f"{_me()} must be able to write there"
        ) from None
    return work_dir


def _landlock(closed: Sequence[Path]) -> "Landlock | None":
    from edgeorch.runner.landlock import Landlock

    landlock = Landlock(closed)
    if landlock.missing:
        log(f"services can read each other's folders: {landlock.missing}")
        return None
    return landlock


def _announce() -> None:
    """Say that the socket takes connections: to a parent on stdout, to systemd by sd_notify(3)."""
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.sendto(b"READY=1", address.replace("@", "\0", 1) if address.startswith("@") else address)


def _me() -> str:
    return f"user {os.getuid()}"


if __name__ == "__main__":
    sys.exit(main())
