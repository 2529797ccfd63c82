"""What happens to machines: one thing after the other, by a seed, several at a time."""

import random
import signal
from collections import Counter
from dataclasses import dataclass

import trio

DOWN = ("kill host", "kill node", "stop node", "freeze host", "isolate")
"""Faults after which others believe the machine dead."""


@dataclass
class Fault:
    """One thing that happened; times as ``time.time`` has them."""

    kind: str
    machine: str
    at: float
    seconds: float
    survived: bool = False


class Adversary:
    """Does harm until it is told to stop, and undoes all of it."""

    def __init__(self, seed, machines, receiver, wall, say):
        self.rng = random.Random(f"{seed} adversary")
        self.machines, self.receiver, self.wall, self.say = machines, receiver, wall, say
        self.faults = []
        self._busy = set()
        self._acts = {
            "kill node": (3, self._kill_node),
            "kill runner": (1, self._kill_runner),
            "kill host": (3, self._kill_host),
            "restart node": (2, self._restart_node),
            "stop node": (2, self._stop_node),
            "freeze host": (2, self._freeze_host),
            "part": (3, self._part),
            "part one way": (2, self._part_one_way),
            "isolate": (2, self._isolate),
            "fill disk": (2, self._fill_disk),
            "receiver away": (1, self._receiver_away),
        }

    async def run(self, seconds):
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(seconds):
                while True:
                    await trio.sleep(self.rng.uniform(1, 5))
                    kinds = list(self._acts)
                    kind = self.rng.choices(kinds, [self._acts[one][0] for one in kinds])[0]
                    machine = self.rng.choice(self.machines)
                    some_time = self.rng.choice((0.3, 2, 6, 12, 20)) * self.rng.uniform(0.7, 1.3)
                    nursery.start_soon(self._one, kind, machine, some_time)

    def tried(self):
        return Counter(fault.kind for fault in self.faults)

    def survived(self):
        return Counter(fault.kind for fault in self.faults if fault.survived)

    async def _one(self, kind, machine, seconds):
        # One harm at a time to one machine; the network is nobody's.
        alone = kind not in {"part", "part one way", "isolate", "receiver away"}
        if alone and machine.name in self._busy:
            return
        if alone:
            self._busy.add(machine.name)
        fault = Fault(kind, machine.name, self.wall(), seconds)
        self.faults.append(fault)
        self.say(f"{machine.name}: {kind}, {seconds:.1f} s")
        await self._acts[kind][1](machine, seconds)
        fault.survived = await machine.ready() if alone else True
        if not fault.survived:
            self.say(f"{machine.name}: not ready after {kind}")
        if alone:
            self._busy.discard(machine.name)

    async def _kill_node(self, machine, seconds):
        machine.node.wanted = False
        machine.node.send(signal.SIGKILL)
        await trio.sleep(seconds / 2)
        machine.node.wanted = True

    async def _kill_runner(self, machine, _seconds):
        machine.kill_runner()
        await trio.sleep(1)

    async def _kill_host(self, machine, seconds):
        await machine.power_off()
        await trio.sleep(seconds)
        await machine.boot()

    async def _restart_node(self, machine, _seconds):
        machine.node.send(signal.SIGTERM)
        await trio.sleep(1)

    async def _stop_node(self, machine, seconds):
        machine.node.send(signal.SIGSTOP)
        await trio.sleep(seconds)
        machine.node.send(signal.SIGCONT)

    async def _freeze_host(self, machine, seconds):
        machine.freeze(signal.SIGSTOP)
        await trio.sleep(seconds)
        machine.freeze(signal.SIGCONT)

    def _others(self, machine):
        return [one for one in self.machines if one is not machine]

    async def _part(self, machine, seconds):
        other = self.rng.choice(self._others(machine))
        await self._cut([(machine, other), (other, machine)], seconds)

    async def _part_one_way(self, machine, seconds):
        await self._cut([(machine, self.rng.choice(self._others(machine)))], seconds)

    async def _isolate(self, machine, seconds):
        others = self._others(machine)
        await self._cut([*((machine, one) for one in others), *((one, machine) for one in others)], seconds)

    async def _cut(self, pairs, seconds):
        for one, other in pairs:
            one.cut(other)
        await trio.sleep(seconds)
        for one, other in pairs:
            one.heal(other)

    async def _fill_disk(self, machine, seconds):
        with trio.move_on_after(seconds):
            while True:
                await trio.to_thread.run_sync(machine.fill_disk)
                await trio.sleep(0.2)
        machine.clear_disk()

    async def _receiver_away(self, _machine, seconds):
        self.receiver.away = True
        await trio.sleep(seconds)
        self.receiver.away = False
