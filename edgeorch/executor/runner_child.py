"""The runner as a child of the node: in the demo, and where no unit runs one."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import trio

from edgeorch.errors import StartError

LINGER_S = 60.0
"""How long a runner waits for its node to come back after the node was killed."""
GRACE_S = 5.0
"""Between SIGTERM and SIGKILL for services when the node stops cleanly."""


class RunnerProcess:
    """A runner on this machine, with our user: our child, or one that an earlier node has left behind."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    async def stop(self) -> None:
        """End it, and with it all services; without its help where it takes too long."""
        self._send(signal.SIGTERM)
        with trio.move_on_after(GRACE_S + 3):
            await self.gone()
            return
        self._send(signal.SIGKILL)
        await self.gone()

    async def gone(self) -> None:
        """Return when it has exited."""
        await trio.lowlevel.wait_readable(self._pidfd)

    def close(self) -> None:
        """Collect the exit code where it is our child and has ended; forget it in any case."""
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        os.close(self._pidfd)

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._pidfd, number)


async def start_runner(socket: Path, work_dir: Path) -> RunnerProcess:
    """Start a runner in a session of its own, so that Ctrl-C at the node's terminal does not reach it.

    Returns when its socket takes connections; cancelling this ends it.

    Raises:
        StartError: it ended instead; its own sentence is on stderr.
    """
    try:
        socket.parent.mkdir(parents=True, exist_ok=True)
        process, said = _spawn(socket, work_dir)
    except OSError as error:
        detail = f"the runner of native services cannot be started: {error.strerror}"
        raise StartError(detail, hint=f"look at {socket.parent}") from None
    try:
        await trio.lowlevel.wait_readable(said)
        listening = bool(os.read(said, 1))
        if not listening:
            await process.gone()
    except BaseException:
        with trio.move_on_after(GRACE_S + 5, shield=True):
            await process.stop()
        process.close()
        raise
    finally:
        os.close(said)
    if not listening:
        process.close()
        raise StartError("the runner of native services ended at its start", hint="its reason is on stderr")
    return process


def _spawn(socket: Path, work_dir: Path) -> tuple[RunnerProcess, int]:
    """The process, and a descriptor that gets readable when it listens or has ended."""
    argv = [sys.executable, "-m", "edgeorch.runner", "--socket", str(socket), "--work-dir", str(work_dir)]
    argv += ["--linger-s", f"{LINGER_S:g}", "--grace-s", f"{GRACE_S:g}"]
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    try:
        pid = os.posix_spawn(
            sys.executable,
            argv,
            # Its own READY=1 would tell systemd that the node is.
            {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
            file_actions=[*actions, (os.POSIX_SPAWN_DUP2, writing, 1)],
            setsid=True,
        )
        return RunnerProcess(pid), reading
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
