"""Folders of the host: which of them a container may mount, and which mounts reach a Docker Engine."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

ENGINE_SOCKETS = (
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
)
"""Whoever reaches one of these is root on the host."""
PATH_MAX = 4096
"""Bytes of a path that the kernel takes, with the one that ends it (linux/limits.h)."""


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
        listed = [place for folder in self._listed if (place := self._place(folder)) is not None]
        places = [self._place(reading) for reading in _readings(path)]
        return all(place is not None and _in_any(place, listed) for place in places)

    def sockets_behind(self, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Paths whose mounts hold a Docker socket, by text or by where links lead, each with its socket."""
        sockets = [(socket, self._place(socket)) for socket in self._sockets]
        for path in paths:
            written = [PurePosixPath(reading) for reading in _readings(path)]
            led_to = [place for reading in _readings(path) if (place := self._place(reading)) is not None]
            for socket, place in sockets:
                if _in_any(PurePosixPath(socket), written) or (place is not None and _in_any(place, led_to)):
                    yield path, socket
                    break

    def covers(self, folder: str, path: str) -> bool:
        """Whether the path lies in the folder once links are followed."""
        place, outer = self._place(path), self._place(folder)
        return place is not None and outer is not None and place.is_relative_to(outer)

    def _place(self, path: str) -> PurePosixPath | None:
        """Where a path leads, as far as this node may see it."""
        try:
            return PurePosixPath(self._resolve(path))
        except (OSError, ValueError):  # the latter: it has a character that none can have
            return None


def _readings(path: str) -> set[str]:
    """As the kernel reads it, and as the Engine does."""
    return {path, os.path.normpath(path)}


def _in_any(place: PurePosixPath, folders: Sequence[PurePosixPath]) -> bool:
    return any(place.is_relative_to(folder) for folder in folders)


def resolved(path: str) -> str:
    """The path without links; what does not exist yet stays as it is written.

    Raises:
        OSError: this node may not look at it, so it cannot say where the path leads; or the kernel may not.
    """
    if len(path) >= PATH_MAX:
        # Python would look at each part of it by itself.
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    try:
        return os.path.realpath(path, strict=True)
    except FileNotFoundError:
        return os.path.realpath(path)
