"""Limits of memory and CPU, where the system has delegated a cgroup v2 subtree to the runner.

Protocol: kernel.org, Documentation/admin-guide/cgroup-v2.rst. A process inherits its cgroup, so the runner
steps into the attempt's group for the moment of the start; moving the child afterwards would miss what it had
forked.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_CONTROLLERS = {"memory": "memory", "cpu": "cpus"}
_PERIOD_US = 100_000
_HOME = "runner"


class Cgroups:
    """The runner's own subtree. ``limits`` names what it can really limit; without any, it does nothing."""

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self.limits: tuple[str, ...] = ()
        if root is not None:
            self.limits = self._take(root)

    @classmethod
    def detect(cls) -> "Cgroups":
        """The cgroup v2 folder of this process, where there is one that it may manage."""
        try:
            lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        except OSError:
            return cls(None)
        own = next((line[3:] for line in lines if line.startswith("0::")), None)
        mount = next((line.split()[4] for line in mounts if " - cgroup2 " in line), None)
        if own is None or mount is None:
            return cls(None)
        return cls(Path(mount) / own.lstrip("/"))

    def _take(self, root: Path) -> tuple[str, ...]:
        """Step down into a leaf, as only leaves hold processes, and hand the controllers to the leaves."""
        home = root / _HOME
        try:
            offered = (root / "cgroup.controllers").read_text(encoding="utf-8").split()
            wanted = [name for name in _CONTROLLERS if name in offered]
            if not wanted:
                return ()
            home.mkdir(exist_ok=True)
            _enter(home)
        except OSError:
            return ()
        try:
            (root / "cgroup.subtree_control").write_text(
                " ".join(f"+{name}" for name in wanted), encoding="utf-8"
            )
        except OSError:
            # Others live in this group (a login session, a service without Delegate=): leave it as it was.
            with contextlib.suppress(OSError):
                _enter(root)
                home.rmdir()
            return ()
        return tuple(_CONTROLLERS[name] for name in wanted)

    @contextlib.contextmanager
    def entered(self, key: str, cpus: float, memory: int) -> "Iterator[Group | None]":
        """A group with these limits (0: none) in which the body's child starts; None where nothing applies.

        Raises:
            OSError: the group cannot be made.
        """
        limits: dict[str, str] = {}
        if memory and "memory" in self.limits:
            # The whole attempt ends when one of its processes meets the limit: half a service helps nobody.
            limits = {"memory.max": str(memory), "memory.oom.group": "1"}
        if cpus and "cpus" in self.limits:
            limits["cpu.max"] = f"{max(1000, int(cpus * _PERIOD_US))} {_PERIOD_US}"
        if not limits or self._root is None:
            yield None
            return
        group = Group(self._root / f"attempt-{key}")
        group.path.mkdir(exist_ok=True)
        for name, value in limits.items():
            (group.path / name).write_text(value, encoding="utf-8")
        _enter(group.path)
        try:
            yield group
        finally:
            _enter(self._root / _HOME)


class Group:
    """The cgroup of one attempt."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def kill(self) -> None:
        """SIGKILL everything in it at once (cgroup.kill, Linux 5.14)."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.kill").write_text("1", encoding="utf-8")

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel killed something here for want of memory."""
        try:
            events = (self.path / "memory.events").read_text(encoding="utf-8")
        except OSError:
            return False
        return any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in events.splitlines())

    def remove(self) -> None:
        """Remove the empty group."""
        with contextlib.suppress(OSError):
            self.path.rmdir()


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")
