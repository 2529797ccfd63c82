"""Five machines under a steady load of tasks, while a seeded adversary kills, stops, parts and fills them.

    python tests/faults/chaos.py [--seconds 600] [--seed 42] [--json]

The seed decides what is done and when, not what comes of it: real processes share a real machine. Needs
Linux, iproute2 and util-linux; without root it takes a user namespace. Everything happens in namespaces and
on a tmpfs of its own, which end with it, also at Ctrl-C. After a violation what the nodes said is kept.
"""

import argparse
import datetime as dt
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import trio
from chaos_adversary import DOWN, Adversary
from chaos_checks import ENDED, History, violations, waits_for_the_dead
from chaos_load import RECEIVER_PORT, Load, Receiver, read_ledger
from machines import GATEWAY, Machine, make_bridge, run

from edgeorch.client import TaskFilter
from edgeorch.errors import EdgeorchError
from edgeorch.identity import Authority
from edgeorch.rest.tokens import Token, hash_of, new_text, write_tokens

INSIDE = "EDGEORCH_CHAOS_INSIDE"
PLACE = Path(__file__).parents[2] / "build" / "chaos"
KEPT = Path(__file__).parents[2] / "build" / "chaos-kept"
MACHINES = 5
LOST_AFTER_S = 30
END_S = 300.0
"""Everything must have ended this long after the last fault."""
QUIET_S = 60.0
MAX_RSS = 200 << 20
MAX_FDS = 200


class Run:
    """One chaos run from beginning to end."""

    def __init__(self, options):
        self.options = options
        self.began = time.monotonic()
        self.problems = []
        self.leaks = []
        self.figures = {}
        self.stopped = False
        self.machines = []
        self.history = History()

    def say(self, text):
        if not self.options.json:
            print(f"{time.monotonic() - self.began:6.1f} {text}", flush=True)

    async def go(self):
        """Run to the end, or until somebody stops it."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:

                async def listen():
                    async for _ in signals:
                        self.stopped = True
                        nursery.cancel_scope.cancel()

                nursery.start_soon(listen)
                await self._all()
                nursery.cancel_scope.cancel()

    async def _all(self):
        seed = self.options.seed
        authority = Authority.create(PLACE / "ca", "chaos")
        text = new_text()
        token = Token(name="chaos", role="admin", sha256=hash_of(text), created=dt.datetime.now(dt.UTC))
        make_bridge()
        self.machines = [
            Machine(PLACE, number, authority, write_tokens([token]), text)
            for number in range(1, MACHINES + 1)
        ]
        self.receiver = Receiver(random.Random(f"{seed} receiver"))
        ledger = PLACE / "ledger"
        async with trio.open_nursery() as nursery:
            await nursery.start(self.receiver.serve, GATEWAY)
            for machine in self.machines:
                seeds = [one.host for one in self.machines if one is not machine]
                machine.configure(seeds, f"[lease]\nlost_after_s={LOST_AFTER_S}\n")
                await machine.boot()
                nursery.start_soon(machine.runner.keep)
                nursery.start_soon(machine.node.keep)
            await self._all_see_all()
            load = Load(seed, self.machines, ledger, f"http://{GATEWAY}:{RECEIVER_PORT}/told")
            adversary = Adversary(seed, self.machines, self.receiver, time.time, self.say)
            self.say("the fleet is up")
            async with trio.open_nursery() as both:
                both.start_soon(lambda: load.run(self.options.seconds, then_s=60))
                both.start_soon(adversary.run, self.options.seconds)
            self.say("the faults are over")
            await self._all_see_all()
            await self._until_ended(load)
            await self._until_quiet()
            self.history.ledger = read_ledger(ledger)
            self.history.told = self.receiver.taken
            await self._read_events()
            self._leaks()
            self._report(load, adversary)
            nursery.cancel_scope.cancel()

    async def _all_see_all(self):
        with trio.move_on_after(60):
            while True:
                try:
                    if all([await self._sees_all(machine) for machine in self.machines]):
                        return
                except EdgeorchError:
                    pass
                await trio.sleep(0.2)
        self.problems.append("the nodes do not see each other")

    async def _sees_all(self, machine):
        nodes = await machine.client.nodes()
        return sum(node.state == "alive" for node in nodes) == MACHINES

    async def _until_ended(self, load):
        """Read every task of every node until all have ended."""
        self.history.accepted = {asked.id: asked.spec for asked in load.asked if asked.id}
        with trio.move_on_after(END_S):
            while True:
                with suppress(EdgeorchError):
                    await self._read_tasks()
                    known = self.history.tasks
                    if (
                        all(task["state"] in ENDED for task in known.values())
                        and self.history.accepted.keys() <= known.keys()
                    ):
                        return
                await trio.sleep(1)

    async def _read_tasks(self):
        for machine in self.machines:
            async with machine.client.tasks(TaskFilter(local=True, limit=500)) as found:
                async for task in found:
                    self.history.tasks[task.id] = {**plain(task), "origin_name": machine.name}

    async def _until_quiet(self):
        """Nothing may be left of all that."""
        left = {}
        with trio.move_on_after(QUIET_S):
            while True:
                left = {machine.name: await self._left(machine) for machine in self.machines}
                if not any(left.values()):
                    break
                await trio.sleep(0.5)
        await self._read_tasks()  # attempts of ended tasks have told their own ends
        self.leaks += [f"{name}: {what}" for name, things in left.items() for what in things]

    async def _left(self, machine):
        left = [f"process {pid}: {command(pid)}" for pid in machine.services()]
        numbers = await metrics(machine)
        names = ("executor_slots_used", "executor_runs_unacknowledged", "callbacks_busy")
        held = {name: numbers[f"edgeorch_{name}"] for name in names}
        return [*left, *(f"{name} is {number:g}" for name, number in held.items() if number)]

    async def _read_events(self):
        limit = trio.CapacityLimiter(8)

        async def one(machine, task_id):
            states = []
            async with limit:
                with trio.move_on_after(30):
                    async with machine.client.events(task_id) as events:
                        states = [event.data["state"] async for event in events if event.type == "state"]
            self.history.ends[task_id] = [state for state in states if state in ENDED]

        by_id = {machine.id: machine for machine in self.machines}
        async with trio.open_nursery() as nursery:
            for task_id, task in self.history.tasks.items():
                nursery.start_soon(one, by_id[task["origin"]], task_id)

    def _leaks(self):
        for machine in self.machines:
            pid = machine.node.pid()
            fds = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
            rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            self.say(f"{machine.name}: {fds} descriptors, {rss / 1e6:.0f} MB")
            if fds > MAX_FDS or rss > MAX_RSS:
                self.leaks.append(f"{machine.name}: {fds} descriptors, {rss / 1e6:.0f} MB")
            for unit in (machine.node, machine.runner):
                log = (machine.folder / f"{unit.name}.log").read_text(errors="replace")
                for bad in ("Traceback", "the database was damaged"):
                    if bad in log:
                        self.problems.append(f"{machine.name}: the {unit.name}'s log says {bad!r}")
                if unit.ends:
                    self.say(f"{machine.name}: the {unit.name} ended by itself: {unit.ends}")

    def _report(self, load, adversary):
        found = violations(self.history)
        self.problems += [line for lines in found.values() for line in lines] + self.leaks
        tried, survived = adversary.tried(), adversary.survived()
        downs = [
            (fault.machine, fault.at, fault.at + fault.seconds)
            for fault in adversary.faults
            if fault.kind in DOWN
        ]
        states = Counter(task["state"] for task in self.history.tasks.values())
        answers = Counter(asked.answer.partition(":")[0] or "no answer" for asked in load.asked)
        self.figures = {
            "seed": self.options.seed,
            "seconds": self.options.seconds,
            "faults": {kind: {"tried": tried[kind], "survived": survived[kind]} for kind in sorted(tried)},
            "faults_tried": sum(tried.values()),
            "faults_survived": sum(survived.values()),
            "requests": dict(answers),
            "tasks_accepted": len(self.history.accepted),
            "tasks_lost": len(found["lost"]),
            "tasks_run_twice_against_the_rule": len(found["run_twice"]) + len(found["overlaps"]),
            "tasks_at_most_once": sum(
                task["spec"]["retry"]["max_attempts"] == 1 for task in self.history.tasks.values()
            ),
            "states": dict(states),
            "attempts_run": len(self.history.ledger),
            "callbacks_taken": sum(map(len, self.receiver.taken.values())),
            "longest_wait_for_a_dead_node_s": round(
                max(waits_for_the_dead(self.history, downs), default=0.0), 1
            ),
            "leaks": len(self.leaks),
            "violations": self.problems,
        }


async def metrics(machine):
    """The node's numbers by name, as Prometheus reads them."""
    http = machine.client._http
    answer = await http.get("/metrics", timeout=20)
    lines = (line.rsplit(" ", 1) for line in answer.text.splitlines() if line[0] != "#")
    return {name: float(value) for name, value in lines}


def plain(task):
    """What REST said of a task, with times in seconds."""

    def seconds(moment):
        return moment.timestamp() if moment else None

    return {
        "id": task.id,
        "state": task.state,
        "reason": task.reason,
        "origin": task.origin,
        "spec": task.spec,
        "attempts": [
            {
                "number": one.number,
                "node_name": one.node_name,
                "state": one.state,
                "reason": one.reason,
                "started_at": seconds(one.started_at),
                "ended_at": seconds(one.ended_at),
            }
            for one in task.attempts
        ],
    }


def command(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:100]
    return "gone"


def table(figures):
    """The figures for people."""
    for kind, count in figures["faults"].items():
        yield kind, f"{count['survived']} of {count['tried']} survived"
    yield "faults tried / survived", f"{figures['faults_tried']} / {figures['faults_survived']}"
    lost, twice = figures["tasks_lost"], figures["tasks_run_twice_against_the_rule"]
    yield (
        "tasks accepted / lost / run twice against the rule",
        f"{figures['tasks_accepted']} / {lost} / {twice}",
    )
    yield "of them at most once", figures["tasks_at_most_once"]
    yield "ended as", ", ".join(f"{count} {state}" for state, count in sorted(figures["states"].items()))
    yield "requests", ", ".join(f"{count} {answer}" for answer, count in sorted(figures["requests"].items()))
    yield "attempts that ran", figures["attempts_run"]
    yield "callbacks taken", figures["callbacks_taken"]
    yield "longest time a task waited for a dead node", f"{figures['longest_wait_for_a_dead_node_s']} s"
    yield "left behind", figures["leaks"]


def keep(run, options):
    """What is needed to look for the fault."""
    place = KEPT / str(options.seed)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for machine in run.machines:
        for log in machine.folder.glob("*.log"):
            shutil.copy(log, place / f"{machine.name}-{log.name}")
    if (PLACE / "ledger").exists():
        shutil.copy(PLACE / "ledger", place / "ledger")
    (place / "tasks.json").write_text(json.dumps(run.history.tasks, indent=1))
    (place / "figures.json").write_text(json.dumps(run.figures, indent=1))
    return place


def main(options):
    run("mount", "-t", "tmpfs", "tmpfs", str(PLACE))
    chaos = Run(options)
    try:
        trio.run(chaos.go)
    except BaseException:
        print(f"what the nodes said: {keep(chaos, options)}", file=sys.stderr)
        raise
    if chaos.stopped:
        print("stopped; nothing is left of it", file=sys.stderr)
        return 130
    figures = chaos.figures
    if options.json:
        print(json.dumps(figures))
    else:
        width = max(len(str(name)) for name, _ in table(figures))
        print("\n".join(f"{name:{width}}  {value}" for name, value in table(figures)))
    if not figures["violations"]:
        return 0
    print("\n".join(figures["violations"]), file=sys.stderr)
    print(f"again: make chaos SECONDS={options.seconds:g} SEED={options.seed}", file=sys.stderr)
    print(f"what the nodes said: {keep(chaos, options)}", file=sys.stderr)
    return 1


def enter():
    """Start this program again in namespaces of its own."""
    PLACE.mkdir(parents=True, exist_ok=True)
    missing = [name for name in ("unshare", "nsenter", "ip", "mount") if not shutil.which(name)]
    if missing:
        sys.exit(f"needs {', '.join(missing)}: install util-linux and iproute2")
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    spaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", *user, *spaces, sys.executable, *sys.argv])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="how long there are faults (default 10)")
    parser.add_argument("--seconds", type=float, help="the same in seconds")
    parser.add_argument("--seed", type=int, help="what happens (default: by chance)")
    parser.add_argument("--json", action="store_true", help="print only the figures, as JSON")
    parsed = parser.parse_args()
    parsed.seconds = parsed.seconds or parsed.minutes * 60
    if parsed.seed is None:
        parsed.seed = random.SystemRandom().randrange(10**6)
        sys.argv += ["--seed", str(parsed.seed)]
    if INSIDE not in os.environ:
        enter()
    sys.exit(main(parsed))
