"""The attempts of this runner: started, pumped, ended with all that they started, kept until forgotten."""

import math
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from edgeorch.runner import protocol, spawn, tree
from edgeorch.runner.capped import CappedFile
from edgeorch.runner.limits import Group, Limits
from edgeorch.runner.loop import READABLE, Loop, now
from edgeorch.runner.protocol import Ended, Known
from edgeorch.runner.records import Records
from edgeorch.secret import VARIABLE
from edgeorch.secret_files import SecretFiles

if TYPE_CHECKING:
    from edgeorch.runner.landlock import Landlock

LEFTOVER_GRACE_S = 2.0
"""For what a main process leaves behind."""
LEASE_TICK_S = 0.25
LEASE_GRACE_S = 1.0
"""An attempt must be gone within 2 s of the end of its lease (DESIGN §8), tick included."""
DRAIN_S = 1.0
"""For output in a pipe that somebody outside the attempt holds open."""
LONGEST_S = 1e9
"""No time that a daemon names is longer, also an endless one, and none shorter than nothing."""
_CHUNK = 65_536
_PIPE_CHUNKS = 16
_FREE = nullcontext[Group | None](None)

Then = Callable[[], None]


@dataclass(slots=True)
class Attempt:
    """One that has not ended yet. Times on the loop's clock."""

    key: str
    folder: str
    family: tree.Family
    outputs: dict[int, CappedFile]
    """By the reading end of the pipe, until its end of file."""
    group: Group | None
    lease_until: float | None
    status: int | None = None
    """What waitpid said of the main process."""
    doom: Ended | None = None
    """Why the runner itself ends it."""
    kill_at: float = float("inf")
    called_at: float = float("inf")
    """When the loop will look at it again for that."""
    secrets: bool = False
    told: set[tuple[int, int]] = field(default_factory=set)
    """Processes that had their SIGTERM."""
    draining: bool = False
    silent: bool = True
    """Whether it has printed nothing so far."""
    then: list[Then] = field(default_factory=list)


class Attempts:
    """All attempts.

    Args:
        loop: stopped when a shutdown is complete.
        records: what is kept of them on disk.
        secrets: what is kept of them in memory.
        limits: what can be limited here.
        landlock: keeps their services out of each other's folders; None: nothing does.
        on_exit: called for each that ends.
    """

    def __init__(
        self,
        loop: Loop,
        records: Records,
        secrets: SecretFiles,
        limits: Limits,
        landlock: "Landlock | None",
        *,
        on_exit: Callable[[str, Ended], None],
    ) -> None:
        self._loop = loop
        self._records = records
        self._secrets = secrets
        self._limits = limits
        self._landlock = landlock
        self._on_exit = on_exit
        self._live: dict[str, Attempt] = {}
        self._ending: dict[str, Attempt] = {}
        """Those of the living that are to end and whose output is not drained yet."""
        self._ended = dict(records.recover())
        # Whoever had been given them is gone now.
        secrets.sweep()
        self._deserted: set[str] = set()
        """Those of the ended of which certainly no process is left, however well it hides."""
        self._mains: dict[int, Attempt] = {}
        self._helpers: dict[int, str] = {}
        """Processes that remove the folder of an attempt, and its key."""
        self._children = tree.Children()
        self._plain = spawn.plain(os.environ)
        self._changed = False
        self._null = os.open(os.devnull, os.O_RDWR)
        self._shutdown: Ended | None = None
        self._open_files = _raise_open_files()
        loop.on_signal(signal.SIGCHLD, self._look_again)

    @property
    def running(self) -> int:
        """How many have not ended."""
        return len(self._live)

    def folder(self, key: str) -> str:
        """The folder of one that runs, or has ended and is not forgotten; of another one empty."""
        return self._records.folder(key) if key in self._live or key in self._ended else ""

    def start(self, request: protocol.Start) -> str:
        """Start a program unless the key is known; the attempt's folder.

        Raises:
            SpawnError: with the reason.
        """
        folder = self._records.folder(request.key)
        if request.key in self._live or request.key in self._ended:
            return folder
        if self._shutdown is not None:
            raise spawn.SpawnError("driver_unavailable", "the runner is stopping")
        if not request.argv:
            raise spawn.SpawnError("invalid_service", "argv is empty", "name the program to run")
        try:
            attempt = self._start(request, folder)
        except OSError as error:
            hint = "look at the node's disk and limits"
            raise spawn.SpawnError("driver_unavailable", f"{folder}: {error.strerror}", hint) from None
        except (ValueError, OverflowError) as error:
            # What the system cannot take is trouble of this task, not of all services.
            raise spawn.SpawnError("invalid_service", f"{request.key}: {error}") from None
        self._live[request.key] = attempt
        for fd in attempt.outputs:
            self._loop.watch(fd, READABLE, partial(self._on_output, attempt, fd))
        if request.lease_s is not None:
            attempt.lease_until = _from_now(request.lease_s)
            self._call_for_lease(attempt, attempt.lease_until)
        return folder

    def _start(self, request: protocol.Start, folder: str) -> Attempt:
        work = self._records.create(folder)
        family = tree.Family(request.key, spawn.marker(work), since=int(now() * tree.TICKS), main=None)
        env = spawn.environment(self._plain, request.env, work)
        own = [work]
        pipes: list[tuple[int, int]] = []
        files: list[CappedFile] = []
        try:
            for name in ("stdout", "stderr"):
                pipes.append(os.pipe())
                os.set_blocking(pipes[-1][0], False)
                files.append(CappedFile(f"{folder}/{name}", request.output_max, lazy=True))
            if request.secrets:
                own.append(str(self._secrets.write(request.key, request.secrets)))
                env[VARIABLE] = f"{work}/secrets"
                os.symlink(own[-1], env[VARIABLE])
            ends = (self._null, pipes[0][1], pipes[1][1])
            limited = request.cpus or request.memory
            with (
                self._limits.entered(request.key, request.cpus, request.memory) if limited else _FREE as group
            ):
                main = spawn.spawn(
                    request.argv, env, own, ends, open_files=self._open_files, landlock=self._landlock
                )
            if limited:
                self._limit(main, group, request)
        except BaseException:
            for reading, _ in pipes:
                os.close(reading)
            self._secrets.remove(request.key)
            self._records.discard(folder)
            raise
        finally:
            for _, writing in pipes:
                os.close(writing)
        family.main = main
        family.sessions.add(main)
        outputs = {reading: file for (reading, _), file in zip(pipes, files, strict=True)}
        attempt = Attempt(
            request.key, folder, family, outputs, group, lease_until=None, secrets=bool(request.secrets)
        )
        self._mains[main] = attempt
        return attempt

    def _limit(self, main: int, group: Group | None, request: protocol.Start) -> None:
        try:
            self._limits.apply(main, group, request.cpus, request.memory)
        except (OSError, ValueError, OverflowError):
            os.kill(main, signal.SIGKILL)
            if group is not None:
                group.kill()
            raise

    def stop(self, key: str, grace_s: float, then: Then) -> None:
        """End an attempt; ``then`` is called when nothing of it is left, at once where nothing runs."""
        attempt = self._live.get(key)
        if attempt is None:
            then()
            return
        attempt.then.append(then)
        self._end(attempt, grace_s)

    def forget(self, key: str, then: Then) -> None:
        """End an attempt without grace, then drop what is kept of it."""

        def drop() -> None:
            if self._ended.pop(key, None) is not None:
                self._remove(key)
            then()

        self.stop(key, 0.0, drop)

    def renew(self, leases: dict[str, float]) -> None:
        """Extend leases, key to seconds from now; keys without a lease keep none."""
        for key, lease_s in leases.items():
            attempt = self._live.get(key)
            if attempt is not None and attempt.lease_until is not None:
                attempt.lease_until = _from_now(lease_s)

    def known(self) -> Iterator[Known]:
        """Every attempt that runs or is not forgotten."""
        for key, attempt in self._live.items():
            yield Known(key=key, folder=attempt.folder)
        for key, ended in self._ended.items():
            yield Known(key=key, folder=self._records.folder(key), ended=ended)

    def shutdown(self, grace_s: float) -> None:
        """End everything, then stop the loop; a second call with less grace hurries it."""
        self._shutdown = Ended(cause="node_lost", reason="the runner was stopped")
        for attempt in self._live.values():
            attempt.doom = attempt.doom or self._shutdown
            self._end(attempt, grace_s)
        self._look_again()

    def after_round(self) -> None:
        """Look at the processes once per round, however many of them have changed."""
        if not self._changed:
            return
        childless = self._reap()
        self._changed = False
        ending = list(self._ending.values())
        members: dict[str, list[tree.Process]] = {}
        # The usual case, a service that ended and left nothing behind, needs no look at the process table.
        if (
            ending
            and not childless
            and (
                any(each.family.main for each in ending)
                or self._children.others_than(self._mains, self._helpers)
            )
        ):
            families = [attempt.family for attempt in self._live.values()]
            members = tree.assign(tree.snapshot(), os.getpid(), families, self._helpers)
        else:
            # The runner has no children but main processes and helpers.
            self._deserted.update(each.key for each in ending)
        for attempt in ending:
            self._press(attempt, members.get(attempt.key, ()))
        if self._shutdown is not None and not self._live and not self._helpers:
            self._loop.stop()

    def _look_again(self) -> None:
        self._changed = True

    def _reap(self) -> bool:
        """Collect what has died; whether no child at all is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            attempt = self._mains.pop(pid, None)
            if attempt is None:
                removed = self._helpers.pop(pid, None)
                if removed is not None:
                    self._records.forget(removed)
            else:
                attempt.status = status
                attempt.family.main = None
                self._end(attempt, LEFTOVER_GRACE_S)

    def _end(self, attempt: Attempt, grace_s: float) -> None:
        attempt.family.ending = True
        attempt.kill_at = min(attempt.kill_at, _from_now(grace_s))
        if not attempt.draining:
            self._ending[attempt.key] = attempt
        self._look_again()

    def _press(self, attempt: Attempt, members: Sequence[tree.Process]) -> None:
        """The next step towards the end: SIGTERM once for each process, SIGKILL when the grace is over."""
        if attempt.status is not None and not members:
            self._drain(attempt)
            return
        if now() >= attempt.kill_at:
            if attempt.group is not None:
                attempt.group.kill()
            tree.send(members, signal.SIGKILL)
        else:
            fresh = [process for process in members if process.identity not in attempt.told]
            attempt.told.update(process.identity for process in fresh)
            tree.send(fresh, signal.SIGTERM)
            if attempt.called_at > attempt.kill_at:
                attempt.called_at = attempt.kill_at
                self._loop.at(attempt.kill_at, self._look_again)

    def _call_for_lease(self, attempt: Attempt, until: float) -> None:
        # Together with others, as most attempts have long ended by then.
        self._loop.at(math.ceil(until / LEASE_TICK_S) * LEASE_TICK_S, lambda: self._check_lease(attempt))

    def _check_lease(self, attempt: Attempt) -> None:
        if attempt.key not in self._live or attempt.lease_until is None or attempt.family.ending:
            return
        if attempt.lease_until > now():
            self._call_for_lease(attempt, attempt.lease_until)
            return
        reason = "not heard from the task's origin for the time of its lease"
        attempt.doom = Ended(cause="lease_expired", reason=reason)
        self._end(attempt, LEASE_GRACE_S)

    def _on_output(self, attempt: Attempt, fd: int, _events: int) -> None:
        self._pump(attempt, fd)

    def _pump(self, attempt: Attempt, fd: int) -> bool:
        """Move a piece of output; whether there may be more of it."""
        file = attempt.outputs.get(fd)
        if file is None:
            return False
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if data:
            attempt.silent = False
            file.write(data)
            return True
        self._close(attempt, fd)
        if attempt.draining and not attempt.outputs:
            self._finish(attempt)
        return False

    def _close(self, attempt: Attempt, fd: int) -> None:
        self._loop.unwatch(fd)
        os.close(fd)
        attempt.outputs.pop(fd).close()

    def _drain(self, attempt: Attempt) -> None:
        """Nothing of it runs any more: take what is in the pipes and finish at their end."""
        for fd in list(attempt.outputs):
            # What the pipe can hold, and not for ever where somebody outside the attempt keeps writing.
            for _ in range(_PIPE_CHUNKS):
                if not self._pump(attempt, fd):
                    break
        attempt.draining = True
        self._ending.pop(attempt.key, None)
        if attempt.outputs:
            self._loop.at(now() + DRAIN_S, lambda: self._finish(attempt))
        else:
            self._finish(attempt)

    def _finish(self, attempt: Attempt) -> None:
        if self._live.pop(attempt.key, None) is None:
            return
        self._ending.pop(attempt.key, None)
        for fd in list(attempt.outputs):
            self._close(attempt, fd)
        if attempt.secrets:
            self._secrets.remove(attempt.key)
        ended = _ended(attempt)
        if attempt.group is not None:
            attempt.group.remove()
        self._ended[attempt.key] = ended
        self._on_exit(attempt.key, ended)
        self._records.close(attempt.key, ended)
        for then in attempt.then:
            then()
        if self._shutdown is not None:
            self._look_again()

    def _remove(self, key: str) -> None:
        """Remove work folder and exit. A full folder takes its time, so rm(1) does it beside the loop."""
        left = self._records.clear(key, deserted=key in self._deserted)
        self._deserted.discard(key)
        if not left:
            self._records.forget(key)
            return
        env = spawn.environment(self._plain, {}, "/")
        argv = ("rm", "-rf", "--", left)
        try:
            pid = spawn.spawn(argv, env, ["/"], (self._null,) * 3, open_files=self._open_files)
        except spawn.SpawnError as error:
            log(f"cannot remove {left}: {error.detail}")
        else:
            self._helpers[pid] = key


def _from_now(seconds: float) -> float:
    """When so many seconds are over; what is no number counts as none."""
    return now() + min(LONGEST_S, max(0.0, seconds))


def _ended(attempt: Attempt) -> Ended:
    code = os.waitstatus_to_exitcode(attempt.status) if attempt.status is not None else 0
    exit_code, number = (code, None) if code >= 0 else (None, -code)
    cause, reason = "", ""
    if attempt.doom is not None:
        cause, reason = attempt.doom.cause, attempt.doom.reason
    elif number == signal.SIGKILL and attempt.group is not None and attempt.group.out_of_memory:
        cause, reason = "oom", "used more memory than the task asks for"
    elif number is not None:
        cause, reason = "failed", f"killed by {_signal_name(number)}"
    elif exit_code:
        cause, reason = "failed", f"exited with code {exit_code}"
    return Ended(exit_code=exit_code, signal=number, cause=cause, reason=reason, silent=attempt.silent)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # the real-time signals between the first and the last have no name


def _raise_open_files() -> int:
    """Allow this process as many descriptors as it can get; the soft limit that services keep."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


def log(text: str) -> None:
    """One line on stderr; there may be nobody left to read it."""
    with suppress(OSError):
        sys.stderr.write(f"edgeorch-runner: {text}\n")
        sys.stderr.flush()
