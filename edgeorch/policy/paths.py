"""Folders of the host: which of them a container may mount, and which mounts reach a Docker Engine."""

import os
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

ENGINE_SOCKETS = (
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
)
"""Whoever reaches one of these is root on the host."""


class HostPaths:
    """The host's folders as they are now.

    Args:
        listed: ``policy.host_paths``.
        sockets: Docker sockets.
        resolve: an absolute path without links and ``..``, as the host sees it now; raises OSError where this
            node may not look.
    """

    def __init__(self, listed: Sequence[str], sockets: Sequence[str], resolve: Callable[[str], str]) -> None:
        self._listed = listed
        self._sockets = sockets
        self._resolve = resolve

    def allow(self, path: str) -> bool:
        """Whether a listed folder covers the path.

        The Engine shortens ``..`` by text before the kernel follows links, the kernel does it after. Both
        readings must be covered. A container that can write below a listed folder could still swap a link
        between this look and the mount; the README says so where it explains ``host_paths``.
        """
        if not path.startswith("/") or "\0" in path:
            return False
        readings = (path, os.path.normpath(path))
        return all(any(self.covers(listed, reading) for listed in self._listed) for reading in readings)

    def socket_behind(self, path: str) -> str:
        """A Docker socket in a mount of the path, by its text or by where its links lead; empty: none."""
        readings = {path, os.path.normpath(path)}
        return next((socket for socket in self._sockets if self._holds(readings, socket)), "")

    def covers(self, folder: str, path: str) -> bool:
        """Whether the path lies in the folder once links are followed."""
        try:
            return PurePosixPath(self._resolve(path)).is_relative_to(self._resolve(folder))
        except OSError:
            return False

    def _holds(self, readings: set[str], socket: str) -> bool:
        written = any(PurePosixPath(socket).is_relative_to(reading) for reading in readings)
        return written or any(self.covers(reading, socket) for reading in readings)


def resolved(path: str) -> str:
    """The path without links; what does not exist yet stays as it is written.

    Raises:
        OSError: this node may not look at it, so it cannot say where the path leads.
    """
    try:
        return os.path.realpath(path, strict=True)
    except FileNotFoundError:
        return os.path.realpath(path)
