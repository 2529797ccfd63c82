"""A node of the simulation: the real membership, dispatch and executor on the in-memory twins."""

import random
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio

from edgeorch.callbacks import Callbacks, NotDeliveredError
from edgeorch.errors import StorageError
from edgeorch.membership import ExecutorLoad, Fleet, Membership, Sampler, SelfInfo
from edgeorch.membership.self_info import INCARNATIONS_PER_BOOT
from edgeorch.seams import Seams
from edgeorch.store import DropTask, PutCallback, PutTask
from edgeorch.testing.drivers import ScriptedHost
from edgeorch.testing.fleet import VirtualMe, VirtualNode
from edgeorch.testing.stores import MemoryStore


class CheckedStore(MemoryStore):
    """Shows each change of a task to the checks."""

    def __init__(self, checks, name, seams):
        super().__init__(seams, store_id=name)
        self._checks, self._name = checks, name

    async def commit_both(self, tasks, runs):
        self._checks.silent(f"the database of {self._name}", msgspec.msgpack.encode([*tasks, *runs]))
        return await super().commit_both(tasks, runs)

    def of_parent(self, task_id):
        return [task for task in self._tasks.values() if task.parent == task_id]

    def _apply(self, change):
        match change:
            case PutTask(task=task):
                before = self._tasks.get(task.id)
                self._checks.task(self._name, before, task)
                whole = self._checks.specs[task.id].placement.mode != "best"
                if whole and task.state.terminal and not (before and before.state.terminal):
                    self._checks.parent(task, self.of_parent(task.id))
            case DropTask(task_id=task_id) if task_id in self._tasks:
                self._checks.dropped(self._name, self._tasks[task_id])
        events, records = len(self._events), len(self._audit)
        super()._apply(change)
        self._checks.put_down(self._name, self._events[events:], self._audit[records:])


class Disk:
    """How a node's disk behaves: ``slow_s`` is the longest time of a commit, ``full`` makes commits fail."""

    def __init__(self):
        self.slow_s = 0.0
        self.full = False


class LifeStore:
    """The store as one life of the daemon sees it; after a crash, that life writes nothing any more."""

    def __init__(self, inner, disk, rng):
        self._inner, self._disk, self._rng = inner, disk, rng
        self._calls, self._queue = trio.open_memory_channel(float("inf"))
        self.gone = False

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def commit(self, changes):
        return await self.commit_both(changes, ())

    async def commit_runs(self, changes):
        await self.commit_both((), changes)

    async def commit_both(self, tasks, runs):
        call = Call(tasks, runs)
        self._calls.send_nowait(call)
        await call.done.wait()
        if call.error is not None:
            raise call.error
        return call.events

    async def write(self):
        """The one writer: in the order of the calls, and also when a caller has gone away meanwhile."""
        async for call in self._queue:
            took = self._rng.uniform(0, self._disk.slow_s)
            before = self._rng.uniform(0, took)
            await trio.sleep(before)
            if self.gone:
                return
            if self._disk.full:
                call.error = StorageError("the disk is full")
            else:
                call.events = await self._inner.commit_both(call.tasks, call.runs)
                # It is on the disk, and nobody knows yet: a crash may come here.
                await trio.sleep(took - before)
            if self.gone:
                return
            call.done.set()


@dataclass
class Call:
    """A transaction that waits for the writer."""

    tasks: object
    runs: object
    events: object = ()
    error: Exception | None = None
    done: trio.Event = field(default_factory=trio.Event)


class CheckedHost(ScriptedHost):
    """Shows each start of a service to the checks."""

    def __init__(self, checks, name, folder):
        super().__init__(folder)
        self._checks, self._name = checks, name

    def begin(self, driver, launch, steps):
        if launch.key not in self.services:
            self._checks.started(self._name, launch)
        return super().begin(driver, launch, steps)


class SimCallbacks(Callbacks):
    """Delivers to a receiver that is sometimes away, and whose answers are sometimes lost."""

    def __init__(self, checks, rng, *parts):
        super().__init__(*parts)
        self._checks, self._rng = checks, rng

    def changes(self, task, spec, kind):
        changes = super().changes(task, spec, kind)
        self._checks.makes(task.id, [one.callback.id for one in changes if isinstance(one, PutCallback)])
        return changes

    async def _send(self, callback):
        await trio.sleep(self._rng.uniform(0, 0.1))
        if self._rng.random() < 0.3 and not self._checks.calm:
            raise NotDeliveredError("the receiver is away")
        self._checks.take(callback)
        await trio.sleep(self._rng.uniform(0, 0.1))
        if self._rng.random() < 0.1 and not self._checks.calm:
            raise NotDeliveredError("the answer was lost")


class StillAddresses:
    """In place of AddressWatch: one address that never changes."""

    def __init__(self, address):
        self.addresses = (address,)
        self.changed = trio.Event()

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        task_status.started()


class InlineSampler(Sampler):
    """Without a thread: MockClock would jump while one works."""

    async def refresh(self):
        self._latest = self._machine.measure()
        self._last_ok = trio.current_time()
        await trio.lowlevel.checkpoint()


class NoRevocations:
    """In place of Identity: there are no certificates here."""

    crl_number = 0
    crl_pem = b""

    def take_crl(self, pem):
        return False


class SimMe(VirtualMe):
    """Facts that membership tells the others."""

    def __init__(self, self_info, slots, *, cpu_busy):
        self.self_info = self_info
        self.slots = slots
        self.cpu_busy = cpu_busy

    @property
    def info(self):
        return self.self_info.info

    def measure(self):
        return super().sample()

    def set_state(self, state):
        self.self_info.change(state=state)


class SimNode(VirtualNode):
    """One machine: its store and its host outlive the daemon."""

    def __init__(self, fleet, name, *, slots, config, folder, address):
        super().__init__(fleet, name, slots=slots, config=config, folder=folder)
        self.rng = random.Random(f"{fleet.seed} {name}")
        self.clock_off_s = 0.0
        self.seams = Seams(
            wall=lambda: 1e9 + trio.current_time() + self.clock_off_s,
            boottime=trio.current_time,
            rng=self.rng,
            boot=1,
        )
        self.store = CheckedStore(fleet.checks, name, self.seams)
        self.host = CheckedHost(fleet.checks, name, folder)
        self.disk = Disk()
        self.address = address
        self.busy = self.rng.random()
        self.facts = msgspec.structs.replace(self.me.info, addresses=(address,), store_id=name)
        self.life = None
        self.clients = set()
        """Scopes of the requests that it is answering: they end with it."""

    def join(self, slots):
        boot = self.store.boot
        info = msgspec.structs.replace(self.facts, boot=boot, incarnation=boot * INCARNATIONS_PER_BOOT)
        self.me = SimMe(SelfInfo(info), slots, cpu_busy=self.busy)
        self.peers = self.fleet.network.peers(self.id)
        self.peers.running = False  # until it is live
        self.peers.begin()
        watch = StillAddresses(self.address)
        self.membership = Membership(
            self.config,
            self.me.self_info,
            self.peers,
            self.peers.handlers,
            revocations=NoRevocations(),
            sampler=InlineSampler(self.me, partial(_load, slots), self.seams),
            watch=watch,
            fleet=Fleet("virtual", "ca"),
            seams=self.seams,
            discovery=self.fleet.lan.discovery,
        )
        self.peers.hello = self.membership.hello
        return self.peers

    def open_store(self):
        self.life = LifeStore(self.store, self.disk, self.rng)
        self.fleet.nursery.start_soon(self.life.write)
        checks = self.fleet.checks
        self.notes = SimCallbacks(
            checks,
            random.Random(f"{self.seams.rng.random()}"),
            self.life,
            self.config.callbacks,
            self.seams,
            lambda _: "10.0.0.1",
            lambda *_args, **_how: "",
        )
        return self.life

    async def go_live(self, nursery):
        await nursery.start(self.notes.run)
        await nursery.start(self.peers.run)
        await nursery.start(self.membership.run)
        self.fleet.network.restart(self.id)
        self.membership.announce()

    def crash(self, *, host=False):
        """The daemon is gone between two instructions; with ``host`` everything that runs there too."""
        self.fleet.checks.say(self.name, "crashes with its host" if host else "crashes")
        self.up = False
        if self.life is not None:
            self.life.gone = True
        self._end()
        if host:
            self.host.crash()

    def _end(self):
        self.fleet.network.crash(self.id)
        for client in self.clients:
            client.cancel()
        self.scope.cancel()

    async def stop(self):
        """Say goodbye, then end."""
        self.fleet.checks.say(self.name, "stops")
        self.up = False
        await self.membership.say_goodbye()
        self.life.gone = True
        self._end()

    async def live(self):
        """One life after the other: the store counts the starts, and tells its marks."""
        self.fleet.checks.say(self.name, "starts")
        await self.run()
        self.store.boot += 1
        self.store.marks = dict(self.store._marks)


def _load(slots):
    load = slots.load()
    return ExecutorLoad(load.slots, load.used, load.cpus, load.memory)
