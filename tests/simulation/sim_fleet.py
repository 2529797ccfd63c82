"""The fleet of a simulation, the load on it and the adversary, all from one seed."""

import random
from dataclasses import dataclass

import trio
from sim_checks import BrokenError
from sim_load import NarrowLoad, WideLoad
from sim_node import SimNode

from edgeorch.config import Config, Lease
from edgeorch.testing.discovery import FakeLan
from edgeorch.testing.fleet import VirtualFleet
from edgeorch.testing.wire import Network

END_S = 3600.0
"""Everything must have ended this long after the last fault."""
QUIET_S = 30.0
"""After that, nothing may be left of it."""
CALLBACKS_S = 900.0
"""Receivers must have been told everything by then; a node tries every five minutes in the end."""
DAY_S = 86_400.0
DUE_S = 60.0
"""Of what was cancelled, and of parents whose children have ended."""
NARROW = frozenset({13, 24, 31})
"""Seeds that found something under the first load, which they need to find it again."""


@dataclass(frozen=True)
class Plan:
    """What a seed stands for."""

    seed: int
    nodes: int
    seconds: float
    task_every_s: float
    fault_every_s: float

    @classmethod
    def of(cls, seed):
        rng = random.Random(seed)
        nodes = rng.choice((2, 3, 3, 3, 4, 5)) if rng.random() < 0.95 else rng.randint(7, 50)
        return cls(
            seed=seed,
            nodes=nodes,
            seconds=rng.uniform(30, 150) * min(1, 5 / nodes),
            task_every_s=rng.choice((0.5, 1, 3)),
            fault_every_s=rng.choice((2, 5, 15)),
        )


class SimFleet(VirtualFleet):
    """Nodes with a membership of their own, on one network and one LAN."""

    def __init__(self, folder, plan, checks):
        super().__init__(folder, seed=plan.seed, config=Config(lease=Lease(lost_after_s=60.0)))
        self.plan = plan
        self.seed = plan.seed
        self.network = Network(self.rng, mesh=False)
        self.network.delay_s = (0.0005, 0.003)
        self.lan = FakeLan()
        self.checks = checks

    def add(self, name, *, slots):
        number = len(self.nodes)
        self.nodes[name] = node = SimNode(
            self,
            name,
            slots=slots,
            config=self._config,
            folder=self._folder / name,
            address=f"10.1.{number // 250}.{number % 250 + 1}",
        )
        self.checks.hosts[name] = node.host
        return node

    def start(self, node):
        """Another life of this node."""
        self.nursery.start_soon(node.live)

    def touch(self):
        """Memberships find out by themselves."""

    def up(self):
        return [node for node in self.nodes.values() if node.up]


class Adversary:
    """Does to nodes, disks, clocks and the network what happens to them, one thing after the other."""

    def __init__(self, fleet, nursery):
        self.fleet, self.nursery = fleet, nursery
        self.rng = random.Random(f"{fleet.seed} adversary")

    async def run(self, seconds):
        acts = (self.crash, self.crash, self.crash_host, self.part, self.part, self.isolate, self.slow_disk)
        acts += (self.full_disk, self.lossy, self.delays, self.clock, self.drain, self.stop)
        with trio.move_on_after(seconds):
            while True:
                await trio.sleep(self.rng.expovariate(1 / self.fleet.plan.fault_every_s))
                if nodes := self.fleet.up():
                    self.nursery.start_soon(self.rng.choice(acts), self.rng.choice(nodes), self.some_time())

    def some_time(self):
        return self.rng.choice((0.1, 1, 3, 8, 15, 40)) * self.rng.uniform(0.5, 1.5)

    def say(self, node, what):
        self.fleet.checks.say(node.name, what)

    async def crash(self, node, seconds):
        node.crash()
        await self.back(node, seconds)

    async def crash_host(self, node, seconds):
        node.crash(host=True)
        await self.back(node, seconds)

    async def stop(self, node, seconds):
        await node.stop()
        await self.back(node, seconds)

    async def back(self, node, seconds):
        await trio.sleep(seconds)
        self.fleet.start(node)

    async def part(self, node, seconds):
        await self.cut([(node, self.rng.choice(list(self.fleet.nodes.values())))], seconds)

    async def isolate(self, node, seconds):
        await self.cut([(node, other) for other in self.fleet.nodes.values()], seconds)

    async def cut(self, pairs, seconds):
        pairs = [(one.id, other.id) for one, other in pairs if one is not other]
        for pair in pairs:
            self.fleet.checks.say(pair[0], f"parted from {pair[1]}")
            self.fleet.network.partition(*pair)
        await trio.sleep(seconds)
        for pair in pairs:
            self.fleet.checks.say(pair[0], f"heals with {pair[1]}")
            self.fleet.network.heal(*pair)

    async def slow_disk(self, node, seconds):
        node.disk.slow_s = self.rng.choice((0.05, 0.5, 4))
        self.say(node, f"has a slow disk: {node.disk.slow_s} s")
        await trio.sleep(seconds)
        node.disk.slow_s = 0.0

    async def full_disk(self, node, seconds):
        self.say(node, "has a full disk")
        node.disk.full = True
        await trio.sleep(seconds)
        node.disk.full = False

    async def lossy(self, node, seconds):
        other = self.rng.choice(list(self.fleet.nodes.values()))
        self.say(node, f"loses and repeats messages to {other.name}")
        self.fleet.network.fault(node.id, other.id, drop=self.rng.choice((0.05, 0.5)), duplicate=0.3)
        await trio.sleep(seconds)
        self.fleet.network.fault(node.id, other.id)

    async def delays(self, node, seconds):
        self.say(node, "the network is slow")
        self.fleet.network.delay_s = (0.0, self.rng.choice((0.05, 0.5, 2.0)))
        await trio.sleep(seconds)
        self.fleet.network.delay_s = (0.0005, 0.003)

    async def clock(self, node, _seconds):
        node.clock_off_s = self.rng.choice((-DAY_S, DAY_S, -3.0, 3.0, 0.0))
        self.say(node, f"clock jumps to {node.clock_off_s:+} s")

    async def drain(self, node, seconds):
        self.say(node, "drains")
        node.me.set_state("draining")
        me = node.me
        await trio.sleep(seconds)
        me.set_state("ready")


async def simulate(folder, plan, checks):
    """One seed from beginning to end, seen by ``checks``.

    Raises:
        BrokenError: an invariant did not hold.
    """
    fleet = SimFleet(folder, plan, checks)
    rng = random.Random(plan.seed)
    async with trio.open_nursery() as nursery:
        fleet.nursery = nursery
        nursery.start_soon(Due(fleet).run)
        for number in range(plan.nodes):
            # Ids are names filled up with zeros: n1 and n10 must not share one.
            name = f"n{number:0{len(str(plan.nodes - 1))}}"
            node = fleet.add(name, slots=rng.choice((1, 2, 4)))
            await nursery.start(node.host.run)
            fleet.start(node)
        async with trio.open_nursery() as faults:
            load = (NarrowLoad if plan.seed in NARROW else WideLoad)(fleet, faults)
            faults.start_soon(load.run, plan.seconds)
            faults.start_soon(Adversary(fleet, faults).run, plan.seconds)
        fleet.checks.say("all", "the faults are over")
        fleet.checks.calm = True
        await _end(fleet)
        nursery.cancel_scope.cancel()


async def _end(fleet):
    """Everything that was accepted ends, and nothing is left of it."""
    origins = {task_id: fleet.nodes[name] for name, ids in fleet.checks.accepted.items() for task_id in ids}
    for task_id, node in origins.items():
        if task_id not in node.store._tasks:
            raise BrokenError(f"{task_id} was accepted, and {node.name} does not know it any more")
    with trio.move_on_after(END_S):
        for task_id, node in origins.items():
            while not node.store._tasks[task_id].state.terminal:  # noqa: ASYNC110  in a clock that costs nothing
                await trio.sleep(1)
    for task_id, node in origins.items():
        task = node.store._tasks[task_id]
        if not task.state.terminal:
            raise BrokenError(f"{task_id} has not ended: {task.state}, {task.reason}, {task.attempts[-1:]}")
    fleet.checks.requests({node.name: node.store._tasks.values() for node in fleet.nodes.values()})
    for told in fleet.checks.reads.values():
        fleet.checks.read(told.origin, origins[told.id].store._tasks[told.id])
    await trio.sleep(QUIET_S)
    await _all_told(fleet.checks, [node.store._tasks[task_id] for task_id, node in origins.items()])
    for node in fleet.nodes.values():
        if left := "; ".join(_left(node)):
            raise BrokenError(f"{node.name}: {left}")


class Due:
    """What a healthy node has to do soon."""

    def __init__(self, fleet):
        self._fleet = fleet
        self._since = {}

    async def run(self):
        """Look every few seconds."""
        while True:
            await trio.sleep(5)
            for node in self._fleet.nodes.values():
                healthy = node.up and not node.disk.full and not node.disk.slow_s
                for task in node.store._tasks.values():
                    why = self._why(node, task) if healthy and not task.state.terminal else ""
                    if not why:
                        self._since.pop(task.id, None)
                    elif trio.current_time() - self._since.setdefault(task.id, trio.current_time()) > DUE_S:
                        raise BrokenError(f"{task.id} of {node.name} is still {task.state}: {why}")

    def _why(self, node, task):
        checks = self._fleet.checks
        if not task.cancelling and {task.id, task.parent} & checks.cancelled.keys():
            return "it or its parent was cancelled, and it does not know"
        if checks.calm and task.cancelling:
            return "it was cancelled"
        children = node.store.of_parent(task.id)
        if children and all(child.state.terminal for child in children):
            return f"its children have ended: {[str(child.state) for child in children]}"
        return ""


async def _all_told(checks, tasks):
    with trio.move_on_after(CALLBACKS_S):
        while any(map(checks.untold, tasks)):  # noqa: ASYNC110  as above
            await trio.sleep(1)
    if untold := next(filter(None, map(checks.untold, tasks)), ""):
        raise BrokenError(untold)


def _left(node):
    """What a node still has when all is over."""
    if not node.up:
        yield "has not come back"
        return
    if node.executor.slots.used:
        yield f"holds {node.executor.slots.used} slots"
    if node.dispatch.ledger.held:
        yield f"counts open tasks: {dict(node.dispatch.ledger.held)}"
    if unfinished := [task.id for task in node.store._tasks.values() if not task.state.terminal]:
        yield f"has not ended {unfinished}"
    if node.store._runs:
        yield f"keeps {[(run.offer.key, str(run.state)) for run in node.store._runs.values()]}"
    if living := [key for key, service in node.host.services.items() if service.end is None]:
        yield f"runs {living}"
