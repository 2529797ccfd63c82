"""A node of the fleet, with keys of its own, that says odd things: nobody else is harmed by what it says.

The original is killed by one odd answer of a peer. Here a peer answers every question oddly and asks odd
questions, a few hundred of both; its words are of the right types, so that they get past the decoder.
"""

import contextlib
import json
import random
import socket
import threading
import time

import msgspec
import pytest
from odd_values import BLOBS, odd
from real_fleet import PATIENCE_S, RealFleet, eventually
from test_strangers import context_of

from edgeorch.errors import WireError
from edgeorch.model import NodeInfo, Sample
from edgeorch.wire import frames
from edgeorch.wire.frames import FrameBuffer, Kind
from edgeorch.wire.messages import TYPES, Hello, MakeOffer, Offered, Ping, Pong, Renew

FINE = b'{"name":"a","service":[{"driver":"native","argv":["true"]}]}'
SAMPLE = Sample(
    at=0,
    cpu_busy=0,
    cpu_mhz=9000,
    cpus=64,
    load1=0,
    memory_total=1 << 36,
    memory_available=1 << 36,
    disk_free=1 << 40,
    slots=64,
    slots_used=0,
)


class OddPeer:
    """Keeps one link to a node and says odd things over it, from a thread, until it is told to stop."""

    def __init__(self, node, name, *, seed, blobs=(FINE, *BLOBS)):
        self.node, self.rng, self.blobs = node, random.Random(seed), blobs
        self.context = context_of(node.folder.parent / name)
        self.id = (node.folder.parent / name / "node_id").read_text().strip()
        self.info = NodeInfo(
            id=self.id, name=name, fleet="test", version="1", cpus=64, drivers={"native": "1"}
        )
        self.words = [self.id, node.id]
        self.said = 0
        self.number = 0
        self.failed = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        assert self.failed is None, self.failed

    def _run(self):
        try:
            while not self._stop.is_set():
                with contextlib.suppress(OSError, WireError):
                    self._converse()
        except Exception as error:  # noqa: BLE001  the test's own defect, told to the test
            self.failed = error

    def _converse(self):
        """One link's life; the node may end it at any word."""
        buffer = FrameBuffer()
        sock = socket.create_connection((self.node.host, self.node.fleet.wire), PATIENCE_S)
        with self.context.wrap_socket(sock) as link:
            link.sendall(frames.encode(Kind.LINK, 0, Hello(info=self.info, sample=SAMPLE)))
            link.settimeout(0.01)
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    data = link.recv(65_536)
                    if not data:
                        return
                    for frame in buffer.feed(data):
                        if frame.kind == Kind.REQUEST:
                            self._listen(frame)
                            link.sendall(self._answer(frame))
                link.sendall(self._question())

    def _listen(self, frame):
        """Ids in a question are words to use from now on."""
        if frame.type == MakeOffer.__name__:
            offer = msgspec.msgpack.decode(frame.body, type=MakeOffer).offer
            self.words = [self.id, self.node.id, offer.task_id, offer.task_id, offer.key, offer.key]

    def _answer(self, frame):
        kind = TYPES[frame.type]
        chance = self.rng.random()
        if kind is Ping and chance < 0.7:
            return frames.encode(Kind.ANSWER, frame.id, Pong(info=self.info, sample=SAMPLE))
        if kind is MakeOffer and chance < 0.7:
            return frames.encode(Kind.ANSWER, frame.id, Offered(accepted=True))
        if chance < 0.1:
            return b""
        answer = kind.answer if chance < 0.9 else self.rng.choice(list(TYPES.values()))
        return self._frame(Kind.ANSWER, frame.id, answer)

    def _question(self):
        self.number += 1
        kind = self.rng.choice([one for one in TYPES.values() if one.answer])
        if kind is Renew and self.rng.random() < 0.5:
            kind = Ping
        return self._frame(Kind.REQUEST, self.number, kind)

    def _frame(self, kind, number, message):
        # Its certificate proves its id, and a caller with a role is worth what a node vouches for: not odd.
        fixed = {"role": "read"} | (
            {"id": self.id, "name": self.info.name} if self.rng.random() < 0.5 else {}
        )
        body = odd(self.rng, message, words=self.words, blobs=self.blobs, fixed=fixed)
        left_s = self.rng.choice((None, 0.5, 5.0, float("nan"), -1.0))
        data = msgspec.msgpack.encode([int(kind), number, left_s, message.__name__, body])
        self.said += 1
        return len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize("seed", [1, 2])
def test_odd_answers_and_questions(tmp_path, seed):
    fleet = RealFleet(tmp_path, "kitchen", "mallory", "garage")
    with contextlib.ExitStack() as stack:
        stack.callback(fleet.close)
        kitchen, garage = fleet.start("kitchen", "garage")
        mallory = stack.enter_context(OddPeer(kitchen, "mallory", seed=seed))
        eventually(lambda: "mallory" in kitchen.sees(), "mallory is met")
        there = [kitchen.submit("true", placement={"node": "mallory"}) for _ in range(5)]
        end = time.monotonic() + PATIENCE_S
        while mallory.said < 200 and time.monotonic() < end:
            there.append(kitchen.submit("true", placement={"node": "mallory"}))
            for node in (kitchen, garage):
                assert node.process.poll() is None, node.log()[-3000:]
                for path in ("/api/v1/nodes", "/api/v1/tasks", "/metrics", f"/api/v1/tasks/{there[0]['id']}"):
                    status, body = node.request("GET", path)
                    assert status in (200, 503), (path, body)
        assert mallory.said >= 200
        for node in (kitchen, garage):
            assert node.ended(node.submit("true", placement={"node": node.name}))["state"] == "succeeded"
            assert "Traceback" not in node.log()
        assert kitchen.sees()["garage"] == "alive"
        for task in there:
            assert json.loads(kitchen.request("GET", f"/api/v1/tasks/{task['id']}")[1])["id"] == task["id"]
