"""What runs on this node: takes offers, gives each attempt one task, keeps results until they are taken."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, Self

import structlog
import trio

from edgeorch.config import Executor as Settings
from edgeorch.errors import StorageError
from edgeorch.executor.admission import Refusal, Rules, decide, tightened
from edgeorch.executor.driver import Driver, NoTurnError
from edgeorch.executor.ends import Ends
from edgeorch.executor.life import Life, Origins, state_of
from edgeorch.executor.slots import Load, Reservation, Slots
from edgeorch.model import (
    AttemptState,
    Exit,
    Handle,
    NodeInfo,
    Offer,
    Resources,
    Run,
    Sample,
    Service,
    TaskSpec,
)
from edgeorch.output import tails
from edgeorch.scheduler import driver_of
from edgeorch.seams import Seams
from edgeorch.secret import Secret
from edgeorch.store import AttemptStore, PutRun
from edgeorch.timing import Histogram
from edgeorch.wire.messages import Offered, RunState

log = structlog.get_logger()

NO_TURN = "no slot was free in time"


class Me(Protocol):
    """This node's own facts, as membership keeps them."""

    @property
    def info(self) -> NodeInfo:
        """Facts that change seldom."""
        ...

    def sample(self) -> Sample:
        """The newest measurements with the present load."""
        ...


class Admission:
    """An offer that will be taken: a slot is held, nothing is on disk or started yet.

    Leave the ``with`` block without ``launch`` and the slot is free again.
    """

    def __init__(
        self,
        run: Run,
        spec: TaskSpec,
        service: Service,
        reservation: Reservation,
        secrets: Mapping[str, Secret],
        *,
        at: float,
    ) -> None:
        self.secrets = secrets
        self.at = at
        """When the offer came (boot time): from then on its origin counts the lease."""
        self.run = run
        self.spec = spec
        self.service = service
        self.reservation = reservation
        self.launched = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.launched:
            self.reservation.release()


@dataclass
class _Admitting:
    """An offer that is being written down, and what is answered once it is."""

    answer: Offered = field(default_factory=lambda: Offered(accepted=True))
    done: trio.Event = field(default_factory=trio.Event)


class Executor:
    """Runs attempts. Its tasks live in the nursery of ``run``; cancelling it stops no service.

    Args:
        settings: ``[executor]``.
        output_max: bytes kept per stream.
        tail_max: bytes of each stream that travel with a result.
        me: this node's own facts.
        drivers: by name.
        store: what survives a restart.
        origins: where reports go.
        rules: the node's policy.
        seams: clocks.
        read_tails: gives the last bytes of output files.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        output_max: int,
        tail_max: int,
        lease_s: float,
        slots: Slots,
        me: Me,
        drivers: Mapping[str, Driver],
        store: AttemptStore,
        origins: Origins,
        rules: Rules,
        seams: Seams,
        read_tails: Callable[[Sequence[str], int], Awaitable[list[bytes]]] = tails,
    ) -> None:
        self.read_tails = read_tails
        self.settings = settings
        self.output_max = output_max
        self.tail_max = tail_max
        self.lease_s = lease_s
        self.slots = slots
        self.me = me
        self.drivers = drivers
        self.store = store
        self.origins = origins
        self.seams = seams
        self.ends = Ends(store, seams)
        self._rules = rules
        self._lives: dict[str, Life] = {}
        self._admitting: dict[str, _Admitting] = {}
        self._expected: dict[str, Run] = {}
        self._nursery: trio.Nursery | None = None
        self.started, self.ran, self.reported = Histogram(), Histogram(), Histogram()
        """Until a service runs, until it has ended, until its origin has that on disk."""
        self.accepted = 0
        self.refused = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Adopt what still runs from before, then serve until cancelled.

        Services are not stopped when this ends: their drivers keep them, and the next start adopts them.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.ends.run)
            await self._recover(nursery)
            nursery.start_soon(self._renew_leases)
            task_status.started()
            await trio.sleep_forever()
        raise AssertionError("unreachable")

    def expect(self, runs: Sequence[Run]) -> None:
        """Before ``run``: what may run here since before, of which the store may have no row of its own."""
        self._expected = {run.offer.key: run for run in runs}

    def queues(self, driver: str) -> bool:
        """Whether services can wait for their turn at a driver."""
        known = self.drivers.get(driver)
        return known is not None and known.available.queues

    def load(self) -> Load:
        """For the sampler."""
        return self.slots.load()

    def lives(self) -> Mapping[str, Life]:
        """Attempts that run or whose end is not yet acknowledged, by key."""
        return self._lives

    def admit(
        self, offer: Offer, secrets: Mapping[str, Secret] | None = None, *, soon: bool = False
    ) -> Admission:
        """Hold a slot for the offer; nothing is written or started.

        Args:
            offer: what the origin asks.
            secrets: what came with it; None: the origin is this node, which has them.
            soon: whether a slot that will be free in a moment will do.

        Raises:
            Refusal: this node does not take it.
        """
        try:
            sample = self.me.sample()
            spec, service = decide(offer, self.me.info, sample, self.slots, self._rules, soon=soon)
            self._check_secrets(spec, service, secrets)
        except Refusal:
            self.refused += 1
            raise
        run = Run(
            offer=tightened(offer, self._rules.cap(offer.caller)),
            state=AttemptState.PREPARING,
            driver=driver_of(service),
            accepted_at=self.seams.wall(),
            sequence=1,
        )
        reservation = self.slots.reserve(spec.resources, run.driver)
        return Admission(run, spec, service, reservation, secrets or {}, at=self.seams.boottime())

    def _check_secrets(self, spec: TaskSpec, service: Service, secrets: Mapping[str, Secret] | None) -> None:
        # Names of others would be those of files, and nobody has looked at them.
        if secrets is not None and secrets.keys() != spec.secrets.keys():
            raise Refusal("the task's secrets did not come with the offer", cause="unsupported")
        if not spec.secrets:
            return
        driver = self.drivers.get(driver_of(service))
        if driver is not None and (why := driver.available.no_secrets):
            raise Refusal(f"{self.me.info.name} cannot take secrets: {why}", cause="unsupported")

    def launch(self, admission: Admission) -> None:
        """Start an admitted attempt, whose run is on disk now. Its slot goes to the attempt's task."""
        self._running().start_soon(self._one_attempt, self._live(admission), admission.reservation, None)

    def _live(self, admission: Admission) -> Life:
        """The life of an admitted attempt, which is known from now on; its task is up to the caller."""
        life = Life(
            self,
            admission.run,
            admission.spec,
            admission.service,
            secrets=admission.secrets,
            offered_at=admission.at,
        )
        self._lives[life.key] = life
        admission.launched = True
        self.accepted += 1
        return life

    async def accept(self, offer: Offer, secrets: Mapping[str, Secret]) -> Offered:
        """Answer another node's offer; accepted means that the attempt is on disk and will be started."""
        if offer.key in self._lives:
            return Offered(accepted=True)
        admitting = self._admitting.get(offer.key)
        if admitting is None:
            try:
                admission = self.admit(offer, secrets)
            except Refusal as refusal:
                return Offered(
                    accepted=False, cause=refusal.cause, reason=refusal.detail, sample=self.me.sample()
                )
            admitting = self._admitting[offer.key] = _Admitting()
            # The origin may go away while the run is written; what is on the disk must still be started.
            self._running().start_soon(self._take, admission, admitting)
        await admitting.done.wait()
        return admitting.answer

    async def _take(self, admission: Admission, admitting: "_Admitting") -> None:
        """Write the run down, let the origin know, and go on as the task of the attempt."""
        life = None
        try:
            with admission:
                await self.store.commit_runs([PutRun(run=admission.run)])
                life = self._live(admission)
                # With the attempt in it: the origin need not guess until the next probe.
                admitting.answer = Offered(accepted=True, sample=self.me.sample())
        except StorageError as error:
            sample = self.me.sample()
            admitting.answer = Offered(accepted=False, cause="storage", reason=str(error), sample=sample)
        finally:
            del self._admitting[admission.run.offer.key]
            admitting.done.set()
        if life is not None:
            await self._one_attempt(life, admission.reservation, None)

    def stop(self, key: str, cause: str) -> bool:
        """Begin to end an attempt; False where it is not here."""
        life = self._lives.get(key)
        if life is None:
            return False
        life.stop(cause)
        return True

    async def find(self, task_ids: Sequence[str]) -> tuple[RunState, ...]:
        """What is known here of these tasks' attempts, also of those whose end was acknowledged long ago.

        Raises:
            StorageError: the disk cannot be read; nothing may be concluded from that.
        """
        ended = await self.store.ended_runs(task_ids)
        wanted = set(task_ids)
        accepting = (
            RunState(key=key, state=AttemptState.PREPARING)
            for key in self._admitting
            if key.rpartition(".")[0] in wanted
        )
        living = (life.state() for life in self._lives.values() if life.run.offer.task_id in wanted)
        now = self.seams.wall()
        return (*(state_of(run, now) for run in ended), *accepting, *living)

    def statistics(self) -> dict[str, Any]:
        """Counts for ``/metrics``."""
        load = self.slots.load()
        return {
            "slots": load.slots,
            "slots_used": load.used,
            "offers_accepted": self.accepted,
            "offers_refused": self.refused,
            "runs_unacknowledged": len(self._lives) - self.slots.held,
            "start_seconds": self.started,
            "run_seconds": self.ran,
            "report_seconds": self.reported,
        }

    def _running(self) -> trio.Nursery:
        if self._nursery is None:
            raise AssertionError("the executor takes offers only while it runs")
        return self._nursery

    async def _one_attempt(self, life: Life, reservation: Reservation, handle: Handle | None) -> None:
        """The task of one attempt: one of the two places that contain an unexpected exception."""
        with reservation:
            try:
                if life.recovered:
                    reservation.run()
                else:
                    life.most = reservation.take()
                await life.through(handle, reservation.release)
            except NoTurnError:
                reservation.withdraw()
                await life.conclude(AttemptState.REFUSED, Exit(cause="rejected", reason=NO_TURN))
            except Exception:
                log.exception("attempt failed unexpectedly", task=life.run.offer.task_id, key=life.key)
                await life.conclude(
                    AttemptState.FAILED, Exit(cause="failed", reason="internal error; the node's log has it")
                )
        await life.deliver()
        self._lives.pop(life.key, None)

    async def _recover(self, nursery: trio.Nursery) -> None:
        """Take up every kept run, and end services that no run speaks of."""
        known: dict[str, Handle] = {}
        for driver in self.drivers.values():
            known.update(await driver.recover())
        stored = {run.offer.key: run for run in await self.store.runs()}
        for run in (self._expected | stored).values():
            life = Life.of(self, run, kept=run.offer.key in stored)
            found = known.pop(run.offer.key, None)
            handle = found or (run.handle if run.state is AttemptState.RUNNING else None)
            needs_slot = not run.state.terminal
            resources = life.spec.resources if needs_slot else Resources()
            reservation = self.slots.reserve(resources, run.driver)
            if not needs_slot:
                reservation.release()
            log.info("taking up an attempt", key=run.offer.key, state=str(run.state), found=found is not None)
            self._lives[life.key] = life
            nursery.start_soon(self._one_attempt, life, reservation, handle)
        self._expected = {}
        for key, handle in known.items():
            log.warning("ending a service that no attempt speaks of", key=key, driver=handle.driver)
            nursery.start_soon(self._end_stray, handle)

    async def _end_stray(self, handle: Handle) -> None:
        driver = self.drivers[handle.driver]
        await driver.stop(handle, self.settings.grace_s)
        await driver.destroy(handle)

    async def _renew_leases(self) -> None:
        """Every third of a lease, ask each origin which attempts it still wants."""
        start = trio.current_time() + self.seams.rng.uniform(0, self.lease_s * 0.3)
        while True:
            await trio.sleep_until(start)
            start = max(start + self.lease_s * 0.3, trio.current_time())
            origins: dict[str, list[Life]] = {}
            for life in self._lives.values():
                if life.remote and not life.run.state.terminal:
                    origins.setdefault(life.run.offer.origin, []).append(life)
            async with trio.open_nursery() as nursery:
                for origin, lives in origins.items():
                    nursery.start_soon(self._renew, origin, lives)

    async def _renew(self, origin: str, lives: list[Life]) -> None:
        sent_at = self.seams.boottime()
        with trio.move_on_after(self.lease_s * 0.3):
            wanted = await self.origins.renew(origin, [life.key for life in lives])
            if wanted is None:
                return
            seconds: dict[str, dict[str, float]] = {}
            for life in lives:
                if life.key in wanted:
                    life.renewed(sent_at)
                    if life.run.offer.lease_s is not None:
                        left = sent_at + life.run.offer.lease_s - self.seams.boottime()
                        seconds.setdefault(life.run.driver, {})[life.key] = left
                elif life.run.offer.lease_s is not None:
                    life.stop("superseded")
            for name, keys in seconds.items():
                await self.drivers[name].renew(keys)
