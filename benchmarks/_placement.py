"""A fleet in virtual time: machines that share their cores between tasks, and origins that place them.

The origins use the product's own parts: membership's table, the view with its books and its ranking, the
queue, and the slots of each target. Only what those act upon is simulated: cores, time and the network.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio
import trio.testing

from edgeorch.config import Membership as Times
from edgeorch.config import Scoring
from edgeorch.dispatch.books import Books
from edgeorch.dispatch.entry import NONE, Entry, Refused
from edgeorch.dispatch.queue import Queue, shape_of
from edgeorch.dispatch.view import View
from edgeorch.executor.slots import Reservation, Slots
from edgeorch.membership.table import Table
from edgeorch.model import (
    Caller,
    NativeService,
    NodeInfo,
    Ranked,
    Resources,
    Sample,
    Task,
    TaskSpec,
    TaskState,
)
from edgeorch.scoring import cpus_wanted
from edgeorch.seams import Seams

NODES = 100
ORIGINS = 8
CORES = 4
SLOWEST_MHZ = 500.0
SPEEDS = 8
"""The fastest machine is so many times as fast as the slowest; the others lie evenly between."""
LOAD = 0.8
SAMPLE_S = 2.0
"""A machine measures itself, and each origin hears of it, so often: samples are 1 s old on average."""
HOP_S = 0.0005
COMMIT_S = 0.002
"""What a target needs to write an attempt down."""
WARM_S = 10.0
SPEC = TaskSpec(name="bench", service=(NativeService(argv=("true",)),))
RAW = msgspec.json.encode(SPEC)
SHAPE = shape_of(SPEC)


@dataclass
class Work:
    """One task: what it needs of a core of the fastest machine, and when it came and ended."""

    number: int
    seconds: float
    came: float
    measured: bool = False


class Machine:
    """A machine whose cores are shared evenly: ``n`` tasks on ``CORES`` cores, each on one core at most."""

    def __init__(self, number: int, now: float) -> None:
        share = number / (NODES - 1)
        self.speed = (1 + (SPEEDS - 1) * share) / SPEEDS
        self.slots = Slots(2 * CORES)
        self.info = NodeInfo(
            id=f"n{number:09}",
            name=f"n{number}",
            fleet="bench",
            version="0",
            cpus=CORES,
            drivers={"native": ""},
        )
        self.mhz = SLOWEST_MHZ * SPEEDS * self.speed
        self.turn = 0
        """Grows with each change, so that an end foretold before it is not believed."""
        self._tasks: list[tuple[float, int, Work, Reservation]] = []
        self._served, self._at = 0.0, now
        """What each running task has been given so far; all are given the same."""
        self._used, self._load1, self._busy = 0.0, 0.0, 0.0
        self._then, self._slots = 0.0, 0

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def rate(self) -> float:
        """What each task gets, in cores of the fastest machine."""
        return self.speed * min(1.0, CORES / max(len(self), 1))

    @property
    def gives(self) -> float:
        """What one more task would get."""
        return self.speed * min(1.0, CORES / (len(self) + 1))

    def pass_time(self, now: float) -> None:
        """Serve up to this moment."""
        self._served += (now - self._at) * self.rate
        self._used += (now - self._at) * min(len(self), CORES)
        self._at = now

    def begin(self, work: Work, now: float) -> float:
        """Run a task; when the next one ends."""
        self.pass_time(now)
        line = (self._served + work.seconds, work.number, work, self.slots.reserve(Resources()))
        heapq.heappush(self._tasks, line)
        return self._next(now)

    def end(self, now: float) -> tuple[Work, float]:
        """The task that ends now; and when the next one does."""
        self.pass_time(now)
        _, _, work, reservation = heapq.heappop(self._tasks)
        reservation.release()
        return work, self._next(now)

    def _next(self, now: float) -> float:
        self.turn += 1
        return now + max(self._tasks[0][0] - self._served, 0.0) / self.rate if self._tasks else math.inf

    def measure(self, now: float) -> None:
        """What psutil would tell every ``SAMPLE_S``."""
        self.pass_time(now)
        self._busy, self._used = min(self._used / CORES / SAMPLE_S, 1.0), 0.0
        self._then, self._slots = (self._slots + self.slots.used) / 2, self.slots.used
        self._load1 += (len(self) - self._load1) * (1 - math.exp(-SAMPLE_S / 60))

    def sample(self) -> Sample:
        """What it tells of itself: the newest measurement, and its slots as they are."""
        return Sample(
            at=0.0,
            cpu_busy=self._busy,
            cpu_mhz=self.mhz,
            cpus=CORES,
            load1=self._load1,
            memory_total=1 << 33,
            memory_available=1 << 32,
            disk_free=1 << 34,
            slots=self.slots.total,
            slots_used=self.slots.used,
            cpus_wanted=cpus_wanted(self._busy, CORES, self._then, self.slots.used),
        )


Choose = Callable[[View, Entry], Ranked | None]


def best(view: View, entry: Entry) -> Ranked | None:
    """As the product does."""
    return view.best(entry)


def any_free(view: View, entry: Entry) -> Ranked | None:
    """Any of some that seem to have a slot."""
    ranking = view.rank(entry.spec, entry, explain=False)
    fitting = [line for line in ranking if not line.refusal]
    return view.seams.rng.choice(fitting) if fitting else None


class Origin:
    """What one node knows and does as an origin; compare ``dispatch.place``."""

    def __init__(self, fleet: "Fleet", me: Machine, scoring: Scoring, choose: Choose) -> None:
        self.me = me
        self.fleet = fleet
        self.seams = Seams(rng=random.Random(fleet.rng.random()))
        self.table = Table(me.info.id, Times(), 64, self.seams)
        self.books, self.queue = Books(), Queue()
        self.view = View(me, self.table, self.books, scoring, self.seams)  # type: ignore[arg-type]
        self.choose = choose
        self.waiting: dict[str, Work] = {}

    def take(self, work: Work) -> None:
        """A task is accepted here."""
        task_id = f"{work.number:09}"
        task = Task(
            id=task_id,
            name="bench",
            spec=RAW,
            caller=Caller(token="t", role="submit"),
            state=TaskState.WAITING,
            origin=self.me.info.id,
            created_at=0.0,
        )
        self.waiting[task_id] = work
        self.queue.push(Entry(task=task, shape=SHAPE, deadline=0.0, saved=task))
        self.place()

    def place(self) -> None:
        """Place what waits, until one finds no node."""
        for shape in self.queue.shapes():
            for entry in self.queue.drain(shape):
                if not self._place(entry):
                    self.queue.push(entry)
                    break

    def _place(self, entry: Entry) -> bool:
        while True:
            found = self.choose(self.view, entry)
            if found is None:
                return False
            target = self.fleet.by_id[found.node]
            if target is not self.me:
                self.books.promise(entry.task.id, found.node, SPEC.resources)
                self.fleet.after(HOP_S, partial(self._offered, entry, target))
                return True
            if not target.slots.full:
                self.fleet.begin(self.waiting.pop(entry.task.id), target, None)
                return True
            self._refused(entry, target)

    def _offered(self, entry: Entry, target: Machine) -> None:
        """The offer has arrived: a slot is held while the attempt is written down, or it is refused."""
        if target.slots.full:
            self.fleet.refusals += 1
            sample = target.sample()
            self.fleet.after(HOP_S, lambda: self._answered(entry, target, sample))
            return
        ended = partial(self._ended, entry.task.id)
        self.fleet.begin(self.waiting.pop(entry.task.id), target, ended)
        self.fleet.after(COMMIT_S, partial(self._taken, entry.task.id, target))

    def _taken(self, task_id: str, target: Machine) -> None:
        """It is on the target's disk: the answer goes back, with a sample that shows it."""
        sample = target.sample()
        self.fleet.after(HOP_S, partial(self._accepted, task_id, target, sample))

    def _accepted(self, task_id: str, target: Machine, sample: Sample) -> None:
        now = trio.current_time()
        self.books.accepted(task_id, now, shown=True)
        self.table.sampled(target.info.id, sample, now)

    def _ended(self, task_id: str) -> None:
        """The report of its end."""
        self.books.ended(task_id, trio.current_time())
        self.place()

    def _answered(self, entry: Entry, target: Machine, sample: Sample) -> None:
        self.books.release(entry.task.id)
        self.table.sampled(target.info.id, sample, trio.current_time())
        self._refused(entry, target)
        self.queue.push(entry)
        self.place()

    @staticmethod
    def _refused(entry: Entry, target: Machine) -> None:
        refused = Refused("full", trio.current_time(), lasting=False)
        entry.refused = {**(entry.refused or NONE), target.info.id: refused}

    def hear(self, machine: Machine) -> None:
        """A probe's answer."""
        self.table.heard(machine.info, machine.sample(), trio.current_time(), rtt_s=2 * HOP_S)
        if len(self.queue):
            self.place()


class Oracle:
    """Knows every machine as it is: the fastest that has an idle core, else where a task gets most."""

    def __init__(self, fleet: "Fleet") -> None:
        self.fleet = fleet
        self.line: deque[Work] = deque()

    def take(self, work: Work) -> None:
        """A task is accepted."""
        self.line.append(work)
        self.place()

    def place(self) -> None:
        """Give out what waits."""
        while self.line:
            free = [machine for machine in self.fleet.machines if not machine.slots.full]
            if not free:
                return
            target = max(free, key=lambda machine: (len(machine) < CORES, machine.gives))
            self.fleet.begin(self.line.popleft(), target, None)


@dataclass(order=True)
class _Event:
    at: float
    number: int
    act: Callable[[], None] = field(compare=False)


class Fleet:
    """All of it, and the events to come.

    Args:
        seed: of arrivals, sizes and phases: the same for everything that is compared.
        tasks: how many are measured.
        mean_s: mean size of a task in seconds on an idle core of the fastest machine.
        clock: Trio's, moved by the events.
    """

    def __init__(self, seed: int, tasks: int, mean_s: float, clock: trio.testing.MockClock) -> None:
        self.rng = random.Random(seed)
        self.arrivals = random.Random(seed + 1)
        self.tasks, self.mean_s = tasks, mean_s
        self.clock = clock
        self._events: list[_Event] = []
        self._numbers = itertools.count()
        self.machines = [Machine(number, trio.current_time()) for number in range(NODES)]
        self.by_id = {machine.info.id: machine for machine in self.machines}
        self.origins: list[Origin] | list[Oracle] = []
        self.slowdowns: list[float] = []
        self.refusals = 0
        self._came = 0
        self._ended: dict[int, Callable[[], None] | None] = {}
        """Called when a task of this number has ended."""

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something later."""
        event = _Event(trio.current_time() + seconds, next(self._numbers), act)
        heapq.heappush(self._events, event)

    def begin(self, work: Work, machine: Machine, ended: Callable[[], None] | None) -> None:
        """A machine runs a task; its origin hears of the end."""
        self._ended[work.number] = ended
        self._foretell(machine, machine.begin(work, trio.current_time()))

    def _foretell(self, machine: Machine, at: float) -> None:
        turn = machine.turn
        if at < math.inf:
            self.after(at - trio.current_time(), lambda: self._end(machine, turn))

    def _end(self, machine: Machine, turn: int) -> None:
        if machine.turn != turn:
            return
        now = trio.current_time()
        work, following = machine.end(now)
        self._foretell(machine, following)
        if work.measured:
            self.slowdowns.append((now - work.came) / work.seconds)
        if told := self._ended.pop(work.number):
            self.after(HOP_S, told)
        for origin in self.origins:
            if isinstance(origin, Oracle) or origin.me is machine:
                origin.place()

    def run(self, origins: "list[Origin] | list[Oracle]") -> float:
        """The mean slowdown of the measured tasks."""
        self.origins = origins
        for machine in self.machines:
            self._every(SAMPLE_S, lambda machine=machine: machine.measure(trio.current_time()))
        for origin in origins:
            for machine in self.machines:
                if isinstance(origin, Origin) and machine is not origin.me:
                    origin.hear(machine)
                    self._every(SAMPLE_S, lambda origin=origin, machine=machine: origin.hear(machine))
        capacity = CORES * sum(machine.speed for machine in self.machines)
        self._gap_s = self.mean_s / capacity / LOAD
        self._begun = trio.current_time()
        self.after(0.0, self._arrive)
        while len(self.slowdowns) < self.tasks:
            event = heapq.heappop(self._events)
            self.clock.jump(max(event.at - trio.current_time(), 0.0))
            event.act()
        return sum(self.slowdowns) / self.tasks

    def _arrive(self) -> None:
        """A task comes to one of the origins; arrivals go on until all that are measured have ended."""
        now = trio.current_time()
        # Log-normal with a coefficient of variation of 1.3: most are short, a few are ten times the mean.
        size = self.arrivals.lognormvariate(math.log(self.mean_s) - 0.5, 1.0)
        measured = now - self._begun >= WARM_S and self._came < self.tasks
        self._came += measured
        origin = self.arrivals.choice(range(ORIGINS))
        work = Work(next(self._numbers), size, now, measured)
        self.origins[origin % len(self.origins)].take(work)
        self.after(self.arrivals.expovariate(1 / self._gap_s), self._arrive)

    def _every(self, seconds: float, act: Callable[[], None]) -> None:
        def again() -> None:
            act()
            self.after(seconds, again)

        self.after(self.rng.uniform(0, seconds), again)


def slowdown(policy: str, seed: int, tasks: int, mean_s: float) -> float:
    """Mean slowdown: ``edgeorch``, the same with ``one origin``, ``baobab``, ``random`` or ``oracle``."""
    clock = trio.testing.MockClock()

    async def run() -> float:
        fleet = Fleet(seed, tasks, mean_s, clock)
        if policy == "oracle":
            return fleet.run([Oracle(fleet)])
        origins = 1 if policy == "one origin" else ORIGINS
        places = fleet.machines[NODES // ORIGINS // 2 :: NODES // ORIGINS][:origins]
        scoring = Scoring(formula="baobab" if policy == "baobab" else "edgeorch")
        choose = any_free if policy == "random" else best
        return fleet.run([Origin(fleet, me, scoring, choose) for me in places])

    return trio.run(run, clock=clock)
