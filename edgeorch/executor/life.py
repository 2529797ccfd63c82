"""One attempt on its target: prepare, start, wait, end, report; a linear story under one cancel scope."""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec
import structlog
import trio

from edgeorch.errors import DriverError, EdgeorchError, StorageError
from edgeorch.executor.driver import Driver, Launch
from edgeorch.executor.ends import MAX_BACKOFF_S
from edgeorch.model import AttemptState, Exit, Handle, Run, Service, TaskSpec
from edgeorch.scheduler import driver_of
from edgeorch.secret import Secret
from edgeorch.store import AttemptChange, DropRun, EndRun, PutRun
from edgeorch.timing import clock
from edgeorch.wire.messages import RunState

if TYPE_CHECKING:
    from edgeorch.executor.executor import Executor

T = TypeVar("T")

log = structlog.get_logger()

SHORT_S = 0.05
"""A service that is over within this time is told of once: its start and its end are one transaction."""
BACK_S = 2.0
"""An origin that has come back is told within this of all that has ended, not of all at once."""
START_S = 60.0
"""What a driver may take to start a service, once it has begun to."""
RESOLUTION_S = 0.001
"""What is left of a time by less than this is over: two clocks differ by their rounding."""
_STOPPED = {
    "cancelled": AttemptState.CANCELLED,
    "timed_out": AttemptState.TIMED_OUT,
    "superseded": AttemptState.SUPERSEDED,
    "lease": AttemptState.LOST,
}


def state_of(run: Run, now: float) -> RunState:
    """What a run's record says, with times as ages at ``now``."""

    def age(at: float | None) -> float | None:
        return None if at is None else max(now - at, 0.0)

    return RunState(
        key=run.offer.key,
        state=run.state,
        driver=run.driver,
        sequence=run.sequence,
        started_age_s=age(run.started_at),
        ended_age_s=age(run.ended_at),
        exit=run.exit,
    )


class Origins(Protocol):
    """Where reports go: this node's own dispatch, or another node over the wire."""

    def is_local(self, origin: str) -> bool:
        """Whether the origin is this node."""
        ...

    async def report(self, run: Run, state: RunState, changes: Sequence[AttemptChange]) -> bool:
        """Tell the origin. A local origin commits ``changes`` with its own in one transaction.

        Returns whether the origin has the report on its disk (or does not know the attempt any more).

        Raises:
            EdgeorchError: the origin cannot be reached or cannot write now.
        """
        ...

    async def secrets(self, run: Run) -> dict[str, Secret]:
        """The secrets of a task whose origin is this node.

        Raises:
            StorageError: they cannot be read, or not opened.
        """
        ...

    def progress(self, run: Run, text: str) -> None:
        """Pass on a line for people; may be dropped."""
        ...

    async def renew(self, origin: str, keys: Sequence[str]) -> set[str] | None:
        """Which of these attempts the origin still wants; None when it cannot be asked."""
        ...

    async def reachable(self, origin: str) -> None:
        """Return when the origin may be reachable again."""
        ...


class Life:
    """An attempt from its acceptance until its origin has acknowledged the end."""

    def __init__(
        self,
        executor: "Executor",
        run: Run,
        spec: TaskSpec,
        service: Service | None,
        *,
        secrets: Mapping[str, Secret] | None = None,
        offered_at: float | None = None,
        recovered: bool = False,
        kept: bool = False,
    ) -> None:
        self._secrets = dict(secrets or {})
        """Of another node's task, until it is started; never on a disk."""
        self.recovered = recovered
        self.executor = executor
        self.run = run
        self.spec = spec
        self.service = service
        self.key = run.offer.key
        self.remote = not executor.origins.is_local(run.offer.origin)
        self.most: int | None = None
        """``Launch.most``."""
        self._stop_cause = ""
        self._limit = trio.CancelScope()
        """Around what goes on now: cancelled by ``stop``, and when the time or the lease is over."""
        self._timer_from = executor.seams.boottime()
        # The origin counts from its offer, and the disk may have taken longer than a lease since.
        self._lease_from = self._timer_from if offered_at is None else offered_at
        if run.started_at is not None:
            self._timer_from -= executor.seams.age(run.started_at, run.started_tick)
        self._tails: tuple[bytes, bytes] = (b"", b"")
        self._nursery: trio.Nursery | None = None
        """Of another node's attempt, while it runs."""
        self._untold = False
        """Whether the service runs and nobody was told yet."""
        self._kept = kept
        """Whether the store may have a row of it, where the origin is this node."""
        self.ended = trio.Event()
        """Set when the service has ended: its output is complete."""
        self._ended_at = clock()
        self.begun = trio.Event()
        """Set when the service has been started, or has ended without."""
        if run.handle is not None or run.state.terminal:
            self.begun.set()
        if run.state.terminal:
            self.ended.set()

    @classmethod
    def of(cls, executor: "Executor", run: Run, *, kept: bool) -> "Life":
        """The life of a run that was found in the store, or in its task's row."""
        try:
            spec = msgspec.json.decode(run.offer.spec, type=TaskSpec)
        except msgspec.MsgspecError as error:
            # A later release has started it, and was taken back: to watch and end it, no spec is needed.
            log.warning("this release cannot read what a service is", key=run.offer.key, reason=str(error))
            spec = TaskSpec(name=run.offer.name, service=())
        service = next((one for one in spec.service if driver_of(one) == run.driver), None)
        return cls(executor, run, spec, service, recovered=True, kept=kept)

    def stop(self, cause: str) -> None:
        """Ask for the end; the first cause counts."""
        if not self._stop_cause:
            self._stop_cause = cause
            self._limit.cancel()

    def renewed(self, at: float) -> None:
        """The origin wanted this attempt at ``at`` (boot time)."""
        self._lease_from = max(self._lease_from, at)
        if not self._untold:
            self._limit.deadline = trio.current_time() + self._time_left()

    def state(self, progress: str = "") -> RunState:
        """What the origin is told. Ages, so that the clocks of two nodes need not agree."""
        state = state_of(self.run, self.executor.seams.wall())
        return msgspec.structs.replace(
            state,
            sequence=0 if progress else state.sequence,
            progress=progress,
            stdout_tail=self._tails[0],
            stderr_tail=self._tails[1],
        )

    async def through(self, handle: Handle | None, freed: Callable[[], None]) -> None:
        """From where the run stands to its recorded end. ``freed`` is called once the service has ended."""
        if self.run.state.terminal:
            return
        if self.remote:
            async with trio.open_nursery() as self._nursery:
                await self._execute(handle, freed)
                self._nursery.cancel_scope.cancel()
        else:
            await self._execute(handle, freed)

    async def conclude(self, state: AttemptState, end: Exit) -> None:
        """Record the end, where the origin is this node; another one is told of it at once by ``deliver``.

        Goes on trying while the disk is full: a result must not be forgotten.
        """
        run = self.run
        if run.handle is not None and self.remote and not end.silent:
            files = (run.handle.stdout, run.handle.stderr)
            stdout, stderr = await self.executor.read_tails(files, self.executor.tail_max)
            self._tails = (stdout, stderr)
        self.run = msgspec.structs.replace(
            run, state=state, exit=end, ended_at=self.executor.seams.wall(), sequence=run.sequence + 1
        )
        self.begun.set()
        self.ended.set()
        self._ended_at = clock()
        if self.remote:
            said = {"state": str(state), "exit_code": end.exit_code, "reason": end.reason}
            log.info("ended here", key=self.key, peer=self._origin, **said)
            # Why it was stopped, or did not even start, its driver could not tell after a crash.
            told = run.handle is not None and not self._stop_cause
            self.executor.ends.put(PutRun(run=self.run), at_once=not told)
        else:
            await self._insist()

    async def deliver(self) -> None:
        """Bring the end to the origin, however long it takes, and forget the run, then at the driver too."""
        if self.remote:
            wait_s = 0.5
            while True:
                try:
                    if await self.executor.origins.report(self.run, self.state(), []):
                        break
                except EdgeorchError as error:
                    log.debug("the origin does not take a result", key=self.key, reason=str(error))
                with trio.move_on_after(self._jitter(wait_s)):
                    await self.executor.origins.reachable(self.run.offer.origin)
                    await trio.sleep(self._jitter(min(wait_s, BACK_S)))
                wait_s = min(wait_s * 2, MAX_BACKOFF_S)
        self.executor.reported.since(self._ended_at)
        if self.remote:
            await self.executor.ends.put(EndRun(run=self.run)).wait()
        driver = self.executor.drivers.get(self.run.driver)
        if self.run.handle is not None and driver is not None:
            try:
                await driver.destroy(self.run.handle)
            except DriverError as error:
                log.warning("cannot clean up after an attempt", key=self.key, reason=str(error))

    async def _execute(self, handle: Handle | None, freed: Callable[[], None]) -> None:
        end = await self._run_service(handle)
        freed()
        state, end = self._verdict(end)
        await self.conclude(state, end)

    async def _run_service(self, handle: Handle | None) -> Exit:
        driver = self.executor.drivers.get(self.run.driver)
        if driver is None:
            return Exit(cause="node_lost", reason=f"the {self.run.driver} driver is switched off now")
        if handle is None and self.recovered:
            return Exit(cause="node_lost", reason="the node restarted and the service is gone")
        try:
            return await self._to_its_end(driver, handle)
        except DriverError as error:
            cause = "rejected" if error.reason == "driver_unavailable" else error.reason
            return Exit(cause=cause, reason=str(error))

    async def _to_its_end(self, driver: Driver, handle: Handle | None) -> Exit:
        """Start the service and wait for its end, or bring that about when it has to end earlier.

        Raises:
            DriverError: it could not be started.
        """
        secrets: dict[str, Secret] = {}
        if handle is None:
            secrets = await self._take_secrets()
        elif self.run.state is not AttemptState.RUNNING:
            self._runs(handle)
        begun = clock()

        async def live() -> Exit | None:
            nonlocal handle, begun
            if handle is None:
                handle = await self._start(driver, secrets)
                if handle is None:
                    return None
                begun = clock()
                # This is called again then, and tells of a service that was not over in a moment.
                self._limit.deadline = trio.current_time() + min(self._time_left(), SHORT_S)
            elif self._untold:
                await self._tell_running()
            return await self._wait(driver, handle)

        end = await self._unless_stopped(live)
        if handle is None:
            return Exit()
        if end is None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end, driver, handle)
                if self._untold:
                    await self._tell_running()
                end = await self._wait(driver, handle)
                nursery.cancel_scope.cancel()
        self.executor.ran.since(begun)
        return end

    async def _start(self, driver: Driver, secrets: dict[str, Secret]) -> Handle | None:
        """Prepare and start; None when the driver does not say in time whether it did."""
        if self.service is None:
            raise AssertionError("checked by the caller")
        begun = clock()
        launch = self._launch(self.service, secrets)
        await driver.prepare(launch, self._progress)
        # A start that is cut half-way would leave a service that nobody knows: let it finish.
        with trio.CancelScope(deadline=trio.current_time() + START_S, shield=True):
            handle = await driver.start(launch)
            self._timer_from = self.executor.seams.boottime()
            if self.most is None:  # else it is how long it has waited for its turn
                self.executor.started.since(begun)
            if self.remote or self.run.offer.number == 1:  # of a further one of its own, the origin has told
                log.info("started", key=self.key, peer=self._origin, driver=self.run.driver)
            self._runs(handle)
            return handle
        return None

    async def _take_secrets(self) -> dict[str, Secret]:
        """The secrets for the start.

        Raises:
            DriverError: the origin is this node, and its store does not give them.
        """
        if self.remote or not self.spec.secrets:
            held, self._secrets = self._secrets, {}
            return held
        try:
            return await self.executor.origins.secrets(self.run)
        except EdgeorchError as error:
            raise DriverError(error.detail, hint=error.hint, reason="driver_unavailable") from None

    async def _wait(self, driver: Driver, handle: Handle) -> Exit:
        try:
            return await driver.wait(handle)
        except DriverError as error:
            return Exit(cause="failed", reason=str(error))

    async def _end(self, driver: Driver, handle: Handle) -> None:
        while True:
            try:
                await driver.stop(handle, self.executor.settings.grace_s)
            except DriverError as error:
                log.warning("cannot stop a service yet", key=self.key, reason=str(error))
                await trio.sleep(self._jitter(2))
            else:
                return

    async def _unless_stopped(self, do: Callable[[], Awaitable[T]]) -> T | None:
        """What ``do`` gives; None where this attempt has to end: asked for, out of time, out of its lease."""
        while (left := self._time_left()) > 0:
            with trio.CancelScope(deadline=trio.current_time() + left) as self._limit:
                return await do()
        return None

    def _time_left(self) -> float:
        """Seconds until this attempt has to end; where it has to now, that is asked for."""
        if self._stop_cause:
            return 0.0
        now = self.executor.seams.boottime()
        lease_left = time_left = math.inf
        if self.remote and self.run.offer.lease_s is not None:
            lease_left = self._lease_from + self.run.offer.lease_s - now
        if self.run.offer.timeout_s is not None and self.run.started_at is not None:
            time_left = self._timer_from + self.run.offer.timeout_s - now
        left = min(time_left, lease_left)
        if left > RESOLUTION_S:
            return left
        self.stop("timed_out" if time_left <= RESOLUTION_S else "lease")
        return 0.0

    def _verdict(self, end: Exit) -> tuple[AttemptState, Exit]:
        """The attempt's last state. A service that succeeded although it was asked to stop has succeeded."""
        if not end.cause and end.exit_code == 0:
            return AttemptState.SUCCEEDED, end
        if self._stop_cause:
            reason = {
                "cancelled": "cancelled",
                "timed_out": self._out_of_time(),
                "superseded": "its origin no longer wants it",
                "lease": "its origin was not heard for the length of the lease",
            }[self._stop_cause]
            cause = {"lease": "node_lost"}.get(self._stop_cause, self._stop_cause)
            return _STOPPED[self._stop_cause], msgspec.structs.replace(end, cause=cause, reason=reason)
        if end.cause in ("node_lost", "lease_expired"):
            return AttemptState.LOST, msgspec.structs.replace(end, cause="node_lost")
        return AttemptState.FAILED, end

    def _out_of_time(self) -> str:
        limit = self.run.offer.timeout_s
        if limit is None:
            return "the task's deadline has passed"
        return f"ran longer than {'policy.max_' if self.spec.timeout_s is None else ''}timeout_s = {limit:g}"

    def _launch(self, service: Service, secrets: dict[str, Secret]) -> Launch:
        offer = self.run.offer
        return Launch(
            key=self.key,
            name=offer.name,
            service=service,
            env={
                "EDGEORCH_TASK_ID": offer.task_id,
                "EDGEORCH_ATTEMPT": str(offer.number),
                "EDGEORCH_NODE": self.executor.me.info.name,
                "EDGEORCH_ORIGIN": self._origin,
            },
            cpus=self.spec.resources.cpus or offer.cap.cpus,
            memory=self.spec.resources.memory or offer.cap.memory,
            output_max=self.executor.output_max,
            lease_s=offer.lease_s if self.remote else None,
            secrets=secrets,
            most=self.most,
        )

    @property
    def _origin(self) -> str:
        return self.run.offer.origin_name or self.run.offer.origin

    def _progress(self, text: str) -> None:
        self.executor.origins.progress(self.run, text)

    def _runs(self, handle: Handle) -> None:
        """The service runs, which is to be told. After a crash before that, the driver finds it."""
        self.run = msgspec.structs.replace(
            self.run,
            state=AttemptState.RUNNING,
            handle=handle,
            started_at=self.executor.seams.wall(),
            started_tick=self.executor.seams.tick(),
            sequence=self.run.sequence + 1,
        )
        self._untold = True
        self.begun.set()

    async def _tell_running(self) -> None:
        """Record that the service runs. A full disk does not stop it: the driver finds it again."""
        self._untold, self._kept = False, True
        put = PutRun(run=self.run)
        try:
            if self.remote:
                # Before it is told: what comes after a crash must have a higher number.
                await self.executor.store.commit_runs([put])
                if self._nursery is not None:
                    self._nursery.start_soon(self._report_running)
            else:
                await self.executor.origins.report(self.run, self.state(), [put])
        except StorageError as error:
            log.warning("cannot record that an attempt runs", key=self.key, reason=str(error))

    async def _report_running(self) -> None:
        """Tell the origin that the service runs, until the attempt has ended; ``deliver`` brings the end."""
        wait_s = 0.2
        while True:
            try:
                await self.executor.origins.report(self.run, self.state(), [])
            except EdgeorchError as error:
                log.debug("the origin does not take a report", key=self.key, reason=str(error))
                await trio.sleep(self._jitter(wait_s))
                wait_s = min(wait_s * 2, MAX_BACKOFF_S)
            else:
                return

    async def _insist(self) -> None:
        """Record the end of this node's own attempt until the disk takes it."""
        wait_s = 0.5
        drop = [DropRun(key=self.key)] if self._kept else []
        while True:
            try:
                await self.executor.origins.report(self.run, self.state(), drop)
            except StorageError as error:
                log.warning("cannot record the end of an attempt yet", key=self.key, reason=str(error))
                await trio.sleep(self._jitter(wait_s))
                wait_s = min(wait_s * 2, MAX_BACKOFF_S)
            else:
                return

    def _jitter(self, seconds: float) -> float:
        return seconds * self.executor.seams.rng.uniform(0.5, 1.0)
