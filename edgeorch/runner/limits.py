"""Limits of a service: memory and CPU by a cgroup of its own, elsewhere memory alone, process by process.

Protocol: kernel.org, Documentation/admin-guide/cgroup-v2.rst; getrlimit(2). Cgroups are used where the system
has delegated a v2 subtree to the runner. A process inherits its cgroup, so the runner steps into the group of
the attempt for the moment of the start; moving the child afterwards would miss what it had forked. Services
are started one by one, so nobody else is in there. The limits are written when the runner is out again:
inside, a small one would throttle the runner or, at worst, kill it for want of memory. By then all that the
service has used is charged to its group, and counts.

Of the rlimits RLIMIT_DATA is taken. RLIMIT_AS counts what a program only reserves, which is gigabytes for Go,
Java and JavaScript, and RLIMIT_RSS does nothing. The runner takes it on for the moment of the start, so that
the service has it from the beginning. Below a small one the runner could not allocate itself: that is set
right after the start, which on a busy machine can be later than the service allocates. It holds for each
process alone. No rlimit shares CPU time out: without a cgroup nobody keeps ``cpus``.
"""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

_CONTROLLERS = {"memory": "cgroup:memory", "cpu": "cgroup:cpus"}
_PERIOD_US = 100_000
_HOME = "runner"
_ROOM = 32 << 20
"""Bytes that the runner needs for a start at most: a thread, with its stack, among them."""
_PAGE = resource.getpagesize()


class Limits:
    """What this runner can limit.

    Args:
        root: the runner's own cgroup v2 folder, where there is one.

    Attributes:
        kept: what holds which resource: of ``cgroup:memory``, ``cgroup:cpus`` and ``rlimit:memory``.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self.kept: tuple[str, ...] = self._take(root) if root is not None else ()
        if "cgroup:memory" not in self.kept:
            self.kept += ("rlimit:memory",)

    @classmethod
    def detect(cls) -> "Limits":
        """With the cgroup v2 folder of this process, where there is one that it may manage."""
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
        """Around the start of a service: what it has of this from its beginning on.

        Yields:
            its group; None where no cgroup is to limit it.

        Raises:
            OSError: the group cannot be made.
        """
        by_rlimit = memory and "rlimit:memory" in self.kept
        with (
            _below(memory) if by_rlimit else contextlib.nullcontext(),
            self._in_group(key, cpus, memory) as group,
        ):
            yield group

    @contextlib.contextmanager
    def _in_group(self, key: str, cpus: float, memory: int) -> "Iterator[Group | None]":
        limited = (memory and "cgroup:memory" in self.kept) or (cpus and "cgroup:cpus" in self.kept)
        if not limited or self._root is None:
            yield None
            return
        group = Group(self._root / f"attempt-{key}")
        group.path.mkdir(exist_ok=True)
        try:
            _enter(group.path)
            try:
                yield group
            finally:
                _enter(self._root / _HOME)
        except BaseException:
            group.remove()
            raise

    def apply(self, pid: int, group: "Group | None", cpus: float, memory: int) -> None:
        """Limit the service that has just been started (0: none).

        Raises:
            OSError: not possible; the service is to be ended.
        """
        if memory and "rlimit:memory" in self.kept:
            most = _allowed(memory)
            # A program that has become another user, by a set-user-ID bit, is out of reach.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))
        if group is None:
            return
        if memory and "cgroup:memory" in self.kept:
            # The whole attempt ends when one of its processes meets the limit: half a service helps nobody.
            group.write("memory.oom.group", "1")
            group.write("memory.max", str(memory))
        if cpus and "cgroup:cpus" in self.kept:
            group.write("cpu.max", f"{max(1000, int(cpus * _PERIOD_US))} {_PERIOD_US}")


class Group:
    """The cgroup of one attempt."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, value: str) -> None:
        """Set one of its files.

        Raises:
            OSError: the kernel does not take it.
        """
        (self.path / name).write_text(value, encoding="utf-8")

    def kill(self) -> None:
        """SIGKILL everything in it at once (cgroup.kill, Linux 5.14)."""
        with contextlib.suppress(OSError):
            self.write("cgroup.kill", "1")

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


@contextlib.contextmanager
def _below(memory: int) -> Iterator[None]:
    """Have this limit, if it leaves room for this process itself, and so do children that start meanwhile."""
    own, most = resource.getrlimit(resource.RLIMIT_DATA), _allowed(memory)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * _PAGE
    if most < used + _ROOM:
        yield
        return
    # The hard limit could not be taken back.
    resource.setrlimit(resource.RLIMIT_DATA, (most, own[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, own)


def _allowed(memory: int) -> int:
    """The limit, or this process's own hard one, above which nobody gets."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    return memory if hard == resource.RLIM_INFINITY else min(memory, hard)


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")
