"""Where the Docker Engine listens, and why it does not answer, told apart without asking it."""

import errno
import os
import socket
import stat
from pathlib import Path

from edgeorch.errors import DriverError

DEFAULT_HOST = "unix:///var/run/docker.sock"


def away(reason: str, hint: str = "") -> DriverError:
    """The error for an Engine that cannot be used now."""
    return DriverError(reason, hint=hint, reason="driver_unavailable")


def resolve(host: str) -> str:
    """The configured host, else ``DOCKER_HOST``, else the default socket."""
    return host or os.environ.get("DOCKER_HOST", "") or DEFAULT_HOST


def path_of(host: str) -> str:
    """The path of a Unix socket; empty for other kinds of host."""
    if not host.startswith(("unix://", "http+unix://", "/")):
        return ""
    return "/" + host.partition("://")[2].lstrip("/") if "://" in host else host


def look(host: str) -> None:
    """Check a Unix socket; other kinds of host pass.

    Raises:
        DriverError: no socket, no permission, or nobody listens.
    """
    path = path_of(host)
    if not path:
        return
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise away(f"{path} is not a socket", "check docker.host")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(2)
            probe.connect(path)
    except OSError as error:
        raise _explain(path, error) from error


def _explain(path: str, error: OSError) -> DriverError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return away(
            f"there is no Docker Engine: {path} does not exist", "install docker.io, or set docker.host"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return away(
            f"no permission for the Docker Engine's socket {path}",
            "put the node's user into the group docker (that is root on this host)",
        )
    if error.errno == errno.ECONNREFUSED:
        return away(f"the Docker Engine is not running: {path} refuses", "systemctl start docker")
    return away(f"the Docker Engine at {path} does not answer: {error.strerror or error}")
