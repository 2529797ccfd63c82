"""The load on a simulated fleet: clients that hand in tasks, ask for them, and cancel some."""

import hashlib
import random
from dataclasses import dataclass

import msgspec
import trio
from sim_checks import MARK, BrokenError

from edgeorch.dispatch.requests import Idempotency, Submission
from edgeorch.errors import EdgeorchError, KeyReusedError, NotFoundError
from edgeorch.model import NativeService, Placement, Retry, TaskSpec
from edgeorch.testing.fleet import ADMIN

REQUEST_S = 30.0
TRIES = 4
"""How often a client asks again with its key where it had no answer."""


class NarrowLoad:
    """Clients that hand in tasks, and sometimes cancel one."""

    def __init__(self, fleet, nursery):
        self.fleet, self.nursery = fleet, nursery
        self.rng = random.Random(f"{fleet.seed} load")

    async def run(self, seconds):
        with trio.move_on_after(seconds):
            while True:
                await trio.sleep(self.rng.expovariate(1 / self.fleet.plan.task_every_s))
                if nodes := self.fleet.up():
                    self.act(self.rng.choice(nodes))

    def act(self, node):
        known = self.fleet.checks.accepted.get(node.name)
        if known and self.rng.random() < 0.05:
            self.nursery.start_soon(self.ask, node, self.cancel, self.rng.choice(known))
        else:
            self.nursery.start_soon(self.ask, node, self.submit, self.spec())

    def spec(self):
        rng = self.rng
        script = rng.choice(
            (
                ("true",),
                ("sleep", f"{rng.uniform(0.1, 5):.2f}"),
                ("sleep", f"{rng.uniform(1, 40):.2f}"),
                ("print", "hello", ";", "sleep", "2", ";", "print", "bye"),
                ("sleep", "1", ";", "exit", "3"),
                ("sleep", "1", ";", "oom"),
                ("ignore-term", ";", "sleep", "10"),
                ("hang",),
                ("no-such-program",),
            )
        )
        reasons = ("node_lost", "rejected", "failed", "oom", "timed_out")
        return TaskSpec(
            name="sim",
            service=(NativeService(argv=script),),
            placement=self.placement(),
            timeout_s=rng.uniform(5, 60) if script == ("hang",) else rng.choice((None, None, 20.0)),
            deadline_s=rng.choice((30.0, 120.0, 300.0)),
            priority=rng.choice((50, 50, rng.randint(0, 100))),
            retry=Retry(
                max_attempts=rng.choice((1, 2, 3, 10)),
                on=tuple(reason for reason in reasons if rng.random() < 0.6),
                backoff_s=rng.choice((0.0, 1.0)),
            ),
            on_disconnect=rng.choice(("stop", "stop", "keep")),
            callback_url=rng.choice((None, "http://receiver/")),
        )

    def placement(self):
        rng, nodes = self.rng, list(self.fleet.nodes)
        if rng.random() < 0.1:
            return Placement(mode=rng.choice(("all", "spread")), count=rng.randint(1, min(3, len(nodes))))
        if rng.random() < 0.1:
            return Placement(node=rng.choice(nodes))
        return Placement(self_=rng.random() < 0.7)

    async def ask(self, node, what, argument):
        """One request to one node, which ends when the node does."""
        with trio.move_on_after(REQUEST_S) as scope:
            node.clients.add(scope)
            try:
                await what(node, argument)
            except EdgeorchError as error:
                self.fleet.checks.refused(node.name, error)
            finally:
                node.clients.discard(scope)

    async def submit(self, node, spec):
        raw = msgspec.json.encode(spec)
        self.fleet.checks.accept(
            node.name, await node.dispatch.submit([Submission(spec=spec, raw=raw)], ADMIN)
        )

    async def cancel(self, node, task_id):
        await node.dispatch.cancel(task_id, ADMIN)
        self.fleet.checks.cancelled.setdefault(task_id, trio.current_time())


@dataclass(frozen=True)
class Request:
    """What a client sends, perhaps several times.

    Attributes:
        name: told in the metadata of each of its tasks.
        key: its Idempotency-Key; None: it is sent once.
    """

    name: str
    key: str | None
    submissions: tuple[Submission, ...]


class WideLoad(NarrowLoad):
    """Also batches, secrets, keys that are used again, the original API's numbers, questions, parents."""

    def __init__(self, fleet, nursery):
        super().__init__(fleet, nursery)
        self._requests = 0
        self._parents = {}

    def act(self, node):
        rng, checks = self.rng, self.fleet.checks
        own, parents = checks.accepted.get(node.name), self._parents.get(node.name)
        everybody = [task_id for ids in checks.accepted.values() for task_id in ids]
        chance = rng.random()
        if own and chance < 0.05:
            self.nursery.start_soon(self.ask, node, self.cancel, rng.choice(own))
        elif parents and chance < 0.1:
            self.nursery.start_soon(self.ask, node, self.cancel, rng.choice(parents))
        elif everybody and chance < 0.2:
            self.nursery.start_soon(self.ask, node, self.read, rng.choice(everybody))
        else:
            self.nursery.start_soon(self.insist, node, self.request())

    def placement(self):
        if self.rng.random() < 0.1:
            return Placement(mode="all")
        return super().placement()

    def request(self):
        rng = self.rng
        self._requests += 1
        name = f"request {self._requests}"
        count = rng.randint(2, 5) if rng.random() < 0.2 else 1
        submissions = tuple(self.submission(name, index, count) for index in range(count))
        return Request(name, name if rng.random() < 0.4 else None, submissions)

    def submission(self, name, index, count):
        rng, spec = self.rng, self.spec()
        secrets = {}
        if rng.random() < 0.25:
            secrets = {f"s{number}": f"{MARK}-{rng.getrandbits(64):x}" for number in range(rng.randint(1, 2))}
        self.fleet.checks.given[name, str(index)] = {one: text.encode() for one, text in secrets.items()}
        metadata = {"request": name, "index": str(index), "of": str(count)}
        spec = msgspec.structs.replace(spec, secrets=secrets, metadata=metadata)
        numbered = spec.callback_url is None and rng.random() < 0.2
        return Submission.of(spec, msgspec.json.encode(spec), service_id=numbered)

    async def insist(self, node, request):
        """Send it; with a key again where no answer came, sometimes although one did, and twice at once."""
        if request.key is None:
            await self.ask(node, self.hand_in, request)
            return
        for _ in range(TRIES):
            if node.up:
                async with trio.open_nursery() as both:
                    for _ in range(2 if self.rng.random() < 0.2 else 1):
                        both.start_soon(self.ask, node, self.hand_in, request)
            if request.name in self.fleet.checks.answers and self.rng.random() < 0.7:
                return
            await trio.sleep(self.rng.uniform(0, 10))

    async def hand_in(self, node, request):
        idempotency = None
        if request.key is not None:
            body = hashlib.sha256(request.name.encode()).digest()
            idempotency = Idempotency(key=request.key, body=body)
        try:
            tasks = await node.dispatch.submit(request.submissions, ADMIN, idempotency)
        except KeyReusedError as error:
            raise BrokenError(f"{node.name} takes {request.name} for another: {error}") from None
        self.fleet.checks.answer(node.name, request.name, tasks)
        modes = zip(tasks, request.submissions, strict=True)
        parents = [task.id for task, one in modes if one.spec.placement.mode != "best"]
        self._parents.setdefault(node.name, []).extend(parents)

    async def read(self, node, task_id):
        try:
            task = await node.dispatch.task(task_id, ADMIN)
        except NotFoundError:
            raise BrokenError(f"{node.name} does not know {task_id}, which was accepted") from None
        self.fleet.checks.read(node.name, task)
