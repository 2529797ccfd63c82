"""What the machines of a chaos run are asked to do, and what was answered."""

import contextlib
import json
import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import trio

from edgeorch.errors import EdgeorchError, NodeUnreachableError, UnavailableError

SCRIPT = Path(__file__).with_name("ledger.sh")
PER_SECOND = 2.0
BEAT_S = 0.5
TRY_S = 20.0
RECEIVER_PORT = 8080


@dataclass
class Asked:
    """One task that somebody wanted done; ``id`` is empty until it was answered with 202."""

    number: int
    machine: str
    spec: dict
    id: str = ""
    answer: str = ""


@dataclass
class Receiver:
    """Takes callbacks over plain HTTP, sometimes twice, sometimes not at all.

    Attributes:
        taken: (Idempotency-Key, body) in the order in which they arrived, by task.
        away: while true, connections are closed at once.
    """

    rng: random.Random
    away: bool = False
    taken: dict = field(default_factory=lambda: defaultdict(list))

    async def serve(self, host, *, task_status):  # noqa: ASYNC128  serve_tcp calls it
        await trio.serve_tcp(self._one, RECEIVER_PORT, host=host, task_status=task_status)

    async def _one(self, stream):
        with trio.move_on_after(10), contextlib.suppress(trio.BrokenResourceError, ValueError):
            if self.away:
                return
            head, _, body = (await self._until(stream, b"", b"\r\n\r\n")).partition(b"\r\n\r\n")
            fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
            while len(body) < int(fields["content-length"]):
                if not (more := await stream.receive_some()):
                    return
                body += more
            told = json.loads(body)
            self.taken[told["id"]].append((fields["idempotency-key"], told))
            # Taken, and the sender never hears of it: it must come again.
            if self.rng.random() > 0.1:
                await stream.send_all(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n")

    async def _until(self, stream, data, mark):
        while mark not in data:
            if not (more := await stream.receive_some()):
                raise ValueError("cut short")
            data += more
        return data


class Load:
    """Clients that hand in short and long tasks at a steady pace."""

    def __init__(self, seed, machines, ledger, receiver_url):
        self.rng = random.Random(f"{seed} load")
        self.machines, self.ledger, self.url = machines, ledger, receiver_url
        self.asked = []

    async def run(self, seconds, *, then_s):
        """Ask for ``seconds``; those that were not answered go on asking for ``then_s``."""
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(seconds):
                while True:
                    machine = self.rng.choice(self.machines)
                    asked = Asked(len(self.asked), machine.name, self.spec())
                    self.asked.append(asked)
                    cancel_after = self.rng.uniform(0, 10) if self.rng.random() < 0.04 else None
                    nursery.start_soon(self._ask, machine, asked, cancel_after)
                    await trio.sleep(self.rng.expovariate(PER_SECOND))
            nursery.cancel_scope.deadline = trio.current_time() + then_s

    def spec(self):
        rng = self.rng
        once = rng.random() < 0.3
        long = rng.random() < 0.25
        seconds = rng.uniform(5, 40) if long else rng.choice((0, 0, 0.5, 1))
        code = 3 if rng.random() < 0.1 else 0
        place = rng.choices(
            ({}, {"self": False}, {"node": rng.choice(self.machines).name}), weights=(60, 30, 10)
        )[0]
        return {
            "name": "chaos",
            "service": [
                {
                    "driver": "native",
                    "argv": ["/bin/sh", str(SCRIPT), str(self.ledger), str(int(seconds / BEAT_S)), str(code)],
                }
            ],
            "placement": place,
            "deadline_s": 150,
            "priority": rng.choice((50, 50, 50, rng.randint(0, 100))),
            "retry": {
                "max_attempts": 1 if once else rng.choice((2, 5)),
                "on": ["node_lost", "rejected"] + ["failed"] * (rng.random() < 0.5),
                "backoff_s": 0.5,
            },
            "on_disconnect": "keep" if rng.random() < 0.1 else "stop",
            "callback_url": self.url if rng.random() < 0.3 else None,
            "metadata": {"number": str(len(self.asked))},
        }

    async def _ask(self, machine, asked, cancel_after):
        """At the same machine with the same key until there is an answer."""
        key = f"chaos-{asked.number}"
        while not asked.answer:
            with trio.move_on_after(TRY_S):
                try:
                    task = await machine.client.submit(asked.spec, idempotency_key=key)
                    asked.id, asked.answer = task.id, "accepted"
                except (NodeUnreachableError, UnavailableError):
                    pass
                except EdgeorchError as error:
                    asked.answer = f"refused: {error}"
            await trio.sleep(0.5)
        if asked.id and cancel_after is not None:
            await trio.sleep(cancel_after)
            with trio.move_on_after(TRY_S), contextlib.suppress(EdgeorchError):
                await machine.client.cancel(asked.id)


def read_ledger(path):
    """Times at which each attempt said ``start``, ``on`` or ``end``, by (task id, attempt)."""
    said = defaultdict(list)
    for line in path.read_text().splitlines() if path.exists() else ():
        task_id, attempt, what, when = line.split()
        said[task_id, int(attempt)].append((float(when), what))
    return said
