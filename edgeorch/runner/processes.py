"""Bounds how many processes all services of this runner may have together.

So a fork bomb leaves the rest of the machine processes to work with.

Protocol: getrlimit(2); kernel.org, Documentation/admin-guide/cgroup-v1/pids.rst and cgroup-v2.rst. The unit
has ``TasksMax=``; this is for a runner started by hand. RLIMIT_NPROC counts all threads of a user and
does not bind root. So root's runner steps into a ``pids`` group of its own below the one that it was started
in, where the system has that controller and the kernel lets it (cgroup v2 does not while others live in that
group, unless it is the uppermost). What it starts inherits it.
"""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

_PASSED_ON = ("pids", "memory", "cpu")
"""Controllers that ``limits`` then finds in the new group."""


class Processes:
    """The bound on this runner and all that it starts.

    Attributes:
        kept: ``rlimit:processes``, ``cgroup:processes``, or nothing where nothing holds.
    """

    def __init__(
        self, most: int, *, root: bool | None = None, group: "tuple[Path, Path] | None" = None
    ) -> None:
        self.kept: tuple[str, ...] = ()
        self._home: Path | None = None
        self._own: Path | None = None
        if os.geteuid() if root is None else not root:
            _limit_user(most)
            self.kept = ("rlimit:processes",)
            return
        found = group or _pids_group()
        if found is not None and (_bounded(*found) or self._step_down(found[1], most)):
            self.kept = ("cgroup:processes",)

    def leave(self) -> None:
        """Remove the group, at the end of the runner."""
        if self._own is not None and self._home is not None:
            with contextlib.suppress(OSError):
                _enter(self._home)
                _remove(self._own)

    def _step_down(self, home: Path, most: int) -> bool:
        for left in home.glob("edgeorch-runner-*"):
            if not Path("/proc", left.name.rpartition("-")[2]).exists():
                _remove(left)  # of one that was killed
        own = home / f"edgeorch-runner-{os.getpid()}"
        controllers = home / "cgroup.controllers"
        try:
            offered = controllers.read_text(encoding="ascii").split() if controllers.exists() else None
            own.mkdir()
            if offered is None:  # version 1: each hierarchy has its controller in every group
                _write(own / "pids.max", most)
                _enter(own)
            else:
                _enter(own)
                words = " ".join(f"+{name}" for name in _PASSED_ON if name in offered)
                (home / "cgroup.subtree_control").write_text(words, encoding="ascii")
                _write(own / "pids.max", most)
        except OSError:
            with contextlib.suppress(OSError):
                _enter(home)
                own.rmdir()
            return False
        self._home, self._own = home, own
        return True


def _limit_user(more: int) -> None:
    """So many more threads than the user has now."""
    threads = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if folder.stat().st_uid == os.getuid():
                threads += sum(1 for _ in (folder / "task").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft == resource.RLIM_INFINITY or threads + more < soft:
        resource.setrlimit(resource.RLIMIT_NPROC, (threads + more, hard))


def _pids_group() -> tuple[Path, Path] | None:
    """Where the controller is mounted, and the group of this process in there."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines()]
        mounts = list(_mounts(Path("/proc/self/mountinfo").read_text("utf-8")))
    except OSError:
        return None
    for number, names, path in groups:
        for kind, options, root, at in mounts:
            old = kind == "cgroup" and "pids" in names.split(",") and "pids" in options
            new = kind == "cgroup2" and number == "0" and "pids" in _controllers(Path(at))
            if old or new:
                return Path(at), Path(at) / os.path.relpath(path, root)
    return None


def _mounts(table: str) -> Iterator[tuple[str, list[str], str, str]]:
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        _number, _parent, _device, root, at, *_ = before.split()
        yield kind, options.split(","), root, at


def _controllers(group: Path) -> list[str]:
    try:
        return (group / "cgroup.controllers").read_text(encoding="ascii").split()
    except OSError:
        return []


def _bounded(top: Path, home: Path) -> bool:
    """Whether the system bounds this group already: a unit's ``TasksMax=``, a login session."""
    while True:
        with contextlib.suppress(OSError):
            if (home / "pids.max").read_text(encoding="ascii").strip().isdecimal():
                return True
        if home in (top, home.parent):
            return False
        home = home.parent


def _write(file: Path, number: int) -> None:
    file.write_text(str(number), encoding="ascii")


def _enter(group: Path) -> None:
    _write(group / "cgroup.procs", os.getpid())


def _remove(group: Path) -> None:
    """Remove a group and those of ``limits`` in it; what is in use stays, and another may be quicker."""
    with contextlib.suppress(OSError):
        for folder in (*(each for each in group.iterdir() if each.is_dir()), group):
            with contextlib.suppress(OSError):
                folder.rmdir()
