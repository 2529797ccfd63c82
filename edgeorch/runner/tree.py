"""Which process belongs to which attempt, and signals that reach exactly the process that was meant.

Services may fork, call setsid and turn into daemons. As the runner is the subreaper, all that they leave
behind become its children; this module says whose each of them is.
"""

import contextlib
import os
import signal
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

_CHUNK = 65_536
TICKS = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """One line of /proc/PID/stat (proc(5)). ``started`` counts clock ticks since boot."""

    pid: int
    parent: int
    group: int
    session: int
    started: int
    dead: bool

    @property
    def identity(self) -> tuple[int, int]:
        """Tells two processes apart that had the same pid one after the other."""
        return self.pid, self.started


Table = Mapping[int, Process]


@dataclass(slots=True)
class Family:
    """What is known of one attempt's processes. ``since`` in clock ticks: nothing of it is older."""

    key: str
    marker: bytes
    """A line of the environment that the runner gave to the main process."""
    since: int
    main: int | None
    """The main process until it was reaped."""
    ending: bool = False
    sessions: set[int] = field(default_factory=set)
    seen: set[tuple[int, int]] = field(default_factory=set)


def parse(stat: str) -> Process:
    """The content of /proc/PID/stat. The name may hold spaces and parentheses, so the last one counts."""
    opening, closing = stat.index("("), stat.rindex(")")
    rest = stat[closing + 2 :].split()
    return Process(
        pid=int(stat[:opening]),
        parent=int(rest[1]),
        group=int(rest[2]),
        session=int(rest[3]),
        started=int(rest[19]),
        dead=rest[0] in "ZX",
    )


def snapshot() -> dict[int, Process]:
    """All processes of now."""
    found: dict[int, Process] = {}
    for name in os.listdir("/proc"):  # names only: this is the slow part of ending a service
        if name.isdigit():
            process = look(int(name))
            if process is not None:
                found[process.pid] = process
    return found


def look(pid: int) -> Process | None:
    """One process, or None where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return parse(file.readall().decode(errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None


class Children:
    """The children of this process (CONFIG_PROC_CHILDREN, proc(5))."""

    def __init__(self) -> None:
        me = os.getpid()
        try:
            self._fd = os.open(f"/proc/{me}/task/{me}/children", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._fd = -1

    def others_than(self, *known: Collection[int]) -> bool:
        """Whether there may be others of them; True where the kernel cannot say.

        Orphans come to the main thread, whose list this is; one that another thread has just started may
        still be missing from it.
        """
        if self._fd < 0:
            return True
        # Exact here: children leave this list only by our own reaping.
        data = os.pread(self._fd, _CHUNK, 0)
        return len(data) == _CHUNK or bool(set(map(int, data.split())).difference(*known))


def environment(pid: int) -> set[bytes]:
    """The lines of the environment that the process was started with; none where that cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            return set(file.readall().split(b"\0"))
    except OSError:
        return set()


def assign(
    table: Table, reaper: int, families: Collection[Family], ours: Collection[int]
) -> dict[str, list[Process]]:
    """The living processes of each family, by key.

    A child of the reaper is an orphan unless it is a main process or in ``ours``. An orphan is known by what
    was seen of it before, its session, or its environment. One that has wiped all of these belongs to some
    family that is older than it: it is given away once every such family is ending, so that it is never left
    behind, and never taken from a family that goes on.
    """
    below: dict[int, list[Process]] = {}
    for process in table.values():
        below.setdefault(process.parent, []).append(process)
    sessions = {session: family for family in families for session in family.sessions}
    seen = {identity: family for family in families for identity in family.seen}
    mains = {family.main: family for family in families if family.main is not None}
    members: dict[str, list[Process]] = {family.key: [] for family in families}
    taken: set[int] = set()

    def take(root: Process, family: Family) -> None:
        todo = [root]
        while todo:
            process = todo.pop()
            if process.pid in taken:
                continue
            taken.add(process.pid)
            todo += below.get(process.pid, ())
            if not process.dead:
                members[family.key].append(process)

    for process in below.get(reaper, ()):
        owner = mains.get(process.pid)
        if owner is None and process.pid not in ours and not process.dead:
            owner = seen.get(process.identity) or sessions.get(process.session)
            owner = owner or _marked(process, families) or _last_owner(process, families)
        if owner is not None:
            take(process, owner)
    for family in families:
        family.seen = {process.identity for process in members[family.key]}
        family.sessions |= {process.session for process in members[family.key]}
    return members


def _marked(process: Process, families: Iterable[Family]) -> Family | None:
    lines = environment(process.pid)
    return next((family for family in families if family.marker in lines), None)


def _last_owner(process: Process, families: Iterable[Family]) -> Family | None:
    candidates = [family for family in families if family.since <= process.started] or list(families)
    if len(candidates) == 1 or (candidates and all(family.ending for family in candidates)):
        return candidates[0]
    return None


def send(processes: Iterable[Process], number: signal.Signals) -> None:
    """Signal exactly these processes, and with SIGKILL their process groups too.

    A group gets the signal at once, so that a process that forks all the time cannot run away from it.
    """
    mine = os.getpgrp()
    groups: set[int] = set()
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            fd = os.pidfd_open(process.pid)
            try:
                current = look(process.pid)
                if current is not None and current.started == process.started:
                    signal.pidfd_send_signal(fd, number)
                    groups.add(current.group)
            finally:
                os.close(fd)
    if number is signal.SIGKILL:
        for group in groups - {mine}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)
