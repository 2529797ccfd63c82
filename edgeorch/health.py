"""How the node is: for ``/readyz``, for the line that ``systemctl status`` shows, and for the log."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import structlog
import trio

from edgeorch.config import Loaded
from edgeorch.host import clock_synchronised, why_volatile
from edgeorch.identity import WARN_DAYS
from edgeorch.model import Peer, PeerState
from edgeorch.this_node import State, ThisNode

log = structlog.get_logger()

DAY_S = 86_400.0
CLOCK_EVERY_S = 10.0
SCORE_EVERY_S = 15.0
"""The score moves with each sample; a line that changes every two seconds would keep systemd busy."""
NAMED = 3
"""Nodes or services named in one line."""


class _Store(Protocol):
    @property
    def problem(self) -> str:
        """What is wrong now."""
        ...

    @property
    def set_aside(self) -> Path | None:
        """Where a damaged database went at this start."""
        ...


@dataclass(frozen=True)
class Work:
    """What goes on here: names of what runs, tasks of this node that wait, results that nobody took yet."""

    running: Sequence[str] = ()
    waiting: int = 0
    untaken: int = 0


class Health:
    """Looks at the node's parts when asked.

    Args:
        loaded: the settings.
        store: tells its problem.
        me: state and drivers.
        expires_at: end of the node's certificate, seconds since the epoch.
        refused: why peers do not believe that certificate now; empty where they do.
        peers: all other nodes.
        work: what goes on here.
        score: this node's own.
        wall: seconds since the epoch.
        clock: whether the machine's clock is kept; None where nobody knows.

    Attributes:
        stopping: the node is on its way down.
        settings: what a reload could not bring into force, in a sentence; else empty.
        restart: settings that a restart would bring into force.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        store: _Store,
        me: ThisNode,
        expires_at: Callable[[], float],
        refused: Callable[[], str],
        peers: Callable[[], Iterable[Peer]],
        work: Callable[[], Work],
        score: Callable[[], float],
        wall: Callable[[], float],
        clock: Callable[[], bool | None] = clock_synchronised,
    ) -> None:
        self._store = store
        self._me = me
        self._expires_at = expires_at
        self._refused = refused
        self._peers = peers
        self._work = work
        self._score = score
        self._wall = wall
        self._clock = clock
        self._synchronised: bool | None = None
        self._drivers_asked_for = "executor.drivers" in loaded.origins
        self._seen: set[str] = set()
        self._scored = (-SCORE_EVERY_S, 0.0)
        node = loaded.config.node
        self._volatile = "" if node.volatile else why_volatile(Path(node.state_dir))
        self.stopping = False
        self.settings = ""
        self.restart: tuple[str, ...] = ()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Point out what is odd about this machine, and follow its clock."""
        if self._volatile:
            fix = "move node.state_dir to a disk, or accept it with node.volatile = true"
            log.warning("a restart of this machine may lose accepted tasks", reason=self._volatile, fix=fix)
        self._synchronised = self._clock()
        if self._synchronised is False:
            log.warning("this machine's clock is not synchronised", fix="timedatectl set-ntp true")
        task_status.started()
        while True:
            await trio.sleep(CLOCK_EVERY_S)
            now = self._clock()
            if now is not self._synchronised:
                self._synchronised = now
                log.info("the state of the clock changed", synchronised=now)

    def ready(self) -> Mapping[str, str]:
        """Check name to what is wrong; the node takes requests where nothing is."""
        state = self._me.info.state
        wrong = "; ".join(self._me.problems()) or "no driver works"
        return {
            "store": self._store.problem,
            "certificate": self._refused(),
            "drivers": "" if self._me.info.drivers else wrong,
            "stopping": "the node is stopping" if self.stopping else "",
            "state": "" if state == "ready" else f"the node is {state}",
        }

    def status(self) -> str:
        """The line: what is wrong first, then what will be, then how it stands, then what is odd."""
        ready = self.ready()
        broken, missing = self._drivers()
        wrong = [ready["store"], ready["certificate"], *broken]
        days = self._days()
        aside = self._store.set_aside
        warnings = [
            f"the database was damaged, what could be read was kept (see {aside.name})" if aside else "",
            f"certificate ends in {days:.0f} d" if 0 < days < WARN_DAYS else "",
            self.settings,
        ]
        draining = self._me.info.state == "draining"
        peers, work = peers_line(self._peers()), work_line(self._work(), draining=draining)
        stands = [
            *((work, peers) if draining else (peers, work)),
            f"score {self._rated():.1f}",
            f"certificate {days:.0f} d" if days >= WARN_DAYS else "",
        ]
        odd = [
            "clock not synchronised" if self._synchronised is False else "",
            self._volatile,
            *missing,
            f"needs a restart: {', '.join(self.restart)}" if self.restart else "",
        ]
        return line(wrong, warnings, self._me.info.state, stands, odd)

    def _days(self) -> float:
        return (self._expires_at() - self._wall()) / DAY_S

    def _drivers(self) -> tuple[list[str], list[str]]:
        """Drivers that should work and do not; drivers that this machine never had and nobody asked for."""
        self._seen.update(self._me.info.drivers)
        broken, missing = [], []
        for name, driver in self._me.drivers.items():
            reason = driver.available.reason
            if reason and (self._drivers_asked_for or name in self._seen or not self._me.info.drivers):
                broken.append(f"{name}: {reason}")
            elif reason:
                missing.append(f"no {name} driver")
        return broken, missing

    def _rated(self) -> float:
        now = trio.current_time()
        # 0 also means that nothing was measured yet.
        if now - self._scored[0] >= SCORE_EVERY_S or not self._scored[1]:
            self._scored = (now, self._score())
        return self._scored[1]


def line(
    wrong: Iterable[str], warnings: Iterable[str], state: State, stands: Iterable[str], odd: Iterable[str]
) -> str:
    """All of it in one line; empty texts are left out."""
    bad = ", ".join(filter(None, wrong))
    soon = ", ".join(filter(None, warnings))
    rest = "; ".join(filter(None, (*stands, *odd)))
    heads = (f"DEGRADED {bad}; " if bad else "", f"WARNING {soon}; " if soon else "")
    # A node that is in trouble is not called ready; that it takes no work stays true.
    return f"{''.join(heads)}{rest if bad and state == 'ready' else f'{state}: {rest}'}"


def peers_line(peers: Iterable[Peer]) -> str:
    """How many of each state; those that are missed by name."""
    names: dict[PeerState, list[str]] = {state: [] for state in PeerState}
    for peer in peers:
        names[peer.state].append(peer.info.name)
    missed = [
        f"{len(names[state])} {state} ({_some(sorted(names[state]))})"
        for state in (PeerState.SUSPECT, PeerState.DEAD)
        if names[state]
    ]
    alive = len(names[PeerState.ALIVE])
    return ", ".join([f"{alive} peer{'' if alive == 1 else 's'} alive", *missed])


def work_line(work: Work, *, draining: bool) -> str:
    """What runs and waits; while draining, what is waited for."""
    if not draining:
        return f"{len(work.running)} running, {work.waiting} waiting"
    left = f"{len(work.running)} running ({_some(work.running)})" if work.running else "nothing runs"
    return f"{left}, {work.untaken} to be reported" if work.untaken else left


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown
