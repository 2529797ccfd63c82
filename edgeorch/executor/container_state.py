"""What the driver knows of one container, and how the Engine's account of its end reads as an ``Exit``."""

import signal
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from edgeorch.errors import DriverError
from edgeorch.model import Exit, Handle

if TYPE_CHECKING:
    from edgeorch.executor.container_engine import Engine, EngineStream

_SIGNALLED = 128
KILLED = _SIGNALLED + signal.SIGKILL
"""Exit code of a container that was ended by SIGKILL."""
_ENGINE_STOPPED = frozenset({_SIGNALLED + signal.SIGTERM, KILLED, 255})
"""Exit codes of containers that end because their Engine does."""

_AWAY = "the node or its Docker Engine was away"

REMOVED = Exit(cause="node_lost", reason="somebody else has removed the container")
NEVER_STARTED = Exit(cause="node_lost", reason="the node stopped before the container was started")


class NameTakenError(DriverError):
    """The Engine has a container of that name already."""


@dataclass(slots=True, eq=False)
class Watched:
    """One container whose end matters."""

    handle: Handle
    key: str = ""
    output_max: int = 0
    tty: bool = False
    json_log: bool = False
    restarts: bool = False
    """The Engine may start it again, so an exit need not be the end."""
    starting: bool = False
    unsettled: bool = False
    """Something happened to it while it was being started."""
    oom: bool = False
    exit: Exit | None = None
    exited: trio.Event = field(default_factory=trio.Event)
    stream: "EngineStream | None" = None
    copied: trio.Event | None = None
    """Set when the present copy of its output has ended; None before the first one."""
    settling: trio.Lock = field(default_factory=trio.Lock)

    def finish(self, end: Exit) -> None:
        """Record the end; the first account counts."""
        if not self.exited.is_set():
            self.exit = end
            self.exited.set()


class Creation:
    """Makes one container in a thread; one that nobody waits for any more is removed again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._abandoned = False
        self._ref = ""

    def run(self, engine: "Engine", name: str, body: dict[str, Any]) -> "tuple[str, EngineStream]":
        """Create and attach; blocks.

        Raises:
            DriverError: as ``Engine.create``.
        """
        ref = engine.create(name, body)
        with self._lock:
            self._ref = ref
            abandoned = self._abandoned
        if abandoned:
            engine.remove(ref)
            raise DriverError("nobody waits for this container any more")
        return ref, engine.attach(ref)

    def abandon(self) -> str:
        """Nobody waits any more; the id if the container is there already and is the caller's to remove."""
        with self._lock:
            self._abandoned = True
            return self._ref


def exit_of(state: dict[str, Any], *, outage: bool, memory: int = 0) -> Exit:
    """The end of a container.

    Args:
        state: ``State`` of ``inspect``.
        outage: the node or its Engine was away meanwhile, so that a restart of either may have ended it.
        memory: its memory limit in bytes, 0 for none. An Engine on cgroup v1 misses it at times that the
            kernel killed a container for its memory, and then only tells of the signal.
    """
    code = int(state.get("ExitCode", 0))
    error = str(state.get("Error") or "")
    if state.get("OOMKilled"):
        return Exit(
            exit_code=code, cause="oom", reason="out of memory: the container reached its memory limit"
        )
    if code == 0 and not error:
        return Exit(exit_code=0)
    if outage and code in _ENGINE_STOPPED:
        return Exit(exit_code=code, cause="node_lost", reason=f"ended from outside with {code} while {_AWAY}")
    reason = f"exit code {code}{_signal_name(code)}"
    if code == KILLED and memory:
        reason += f", perhaps out of memory: its limit is {memory / 1048576:.0f} MiB"
    return Exit(exit_code=code, cause="failed", reason=f"{reason}: {error}" if error else reason)


def _signal_name(code: int) -> str:
    try:
        return f" ({signal.Signals(code - _SIGNALLED).name})"
    except ValueError:
        return ""
