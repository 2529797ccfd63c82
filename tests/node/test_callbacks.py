"""Callbacks against a real receiver on loopback."""

import contextlib
import itertools
import json
import random
import socket
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from edgeorch import callbacks as module
from edgeorch.callbacks import Callbacks
from edgeorch.config import Callbacks as Settings
from edgeorch.model import (
    Attempt,
    AttemptState,
    Caller,
    NativeService,
    Task,
    TaskSpec,
    TaskState,
    ulid,
)
from edgeorch.policy.callback_targets import CallbackTargets
from edgeorch.seams import Seams
from edgeorch.store.sqlite import SqliteStore
from edgeorch.testing.stores import FailingStore, MemoryStore

NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(module, "READ_AGAIN_S", 0.01)


class Receiver:
    """Answers what ``answers`` says, 200 when it is empty, and keeps what it was sent."""

    def __init__(self, listener, nursery):
        self.host, self.port = listener.socket.getsockname()[:2]
        self.url = f"http://{self.host}:{self.port}/cb?x=1"
        self.answers = []
        self.got = []
        self._send, self._next = trio.open_memory_channel(100)
        nursery.start_soon(self._serve, listener)

    async def _serve(self, listener):
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self._one, await listener.accept())

    async def _one(self, stream):
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some() or pytest.fail(f"cut: {head}")
            head, _, body = head.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            while len(body) < int(headers["content-length"]):
                body += await stream.receive_some()
            request = (first, headers, json.loads(body))
            answer = self.answers.pop(0) if self.answers else b"200 OK"
            if callable(answer):
                answer = await answer(stream)
            self.got.append(request)
            await self._send.send(request)
            if answer:
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % answer)

    async def next(self):
        with trio.fail_after(20):
            return await self._next.receive()


@asynccontextmanager
async def receiving(host="127.0.0.1", port=0):
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(port, host=host)
        async with listener:
            yield Receiver(listener, nursery)
            nursery.cancel_scope.cancel()


class Noting(Callbacks):
    """Tells when a callback has left the outbox."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.forgotten = trio.Event()

    async def _forget(self, callback):
        await super()._forget(callback)
        self.forgotten.set()
        self.forgotten = trio.Event()


class World:
    """Callbacks over a store, and tasks that change."""

    def __init__(self, store=None, **settings):
        self.now, self.since_boot = NOW, 0.0
        self.seams = Seams(wall=lambda: self.now, boottime=lambda: self.since_boot, rng=random.Random(1))
        self.store = store or MemoryStore(self.seams)
        self.targets = CallbackTargets(("*",))
        self.callbacks = Noting(
            self.store,
            Settings(**settings),
            self.seams,
            {"garage0000": "10.0.0.9"}.get,
            lambda *where, loopback: self.targets.refusal(*where, loopback=loopback),
        )

    def task(self, number=0, **fields):
        attempt = Attempt(
            number=2,
            node="garage0000",
            node_name="garage",
            state=AttemptState.RUNNING,
            offered_at=NOW,
        )
        known = {
            "id": ulid(NOW + number, random.Random(number).getrandbits(80), "0123456789"),
            "name": "resize",
            "state": TaskState.RUNNING,
            "origin": "0123456789",
            "caller": Caller(token="t", role="submit", loopback=True),
            "created_at": NOW,
            "spec": b'{"metadata":{"order":"7"}}',
            "attempts": (attempt,),
        }
        return Task(**known | fields)

    async def tell(self, url, kind="started", **fields):
        """What the ledger does with a change."""
        task = self.task(**fields)
        spec = TaskSpec(name="resize", service=(NativeService(argv=("x",)),), callback_url=url)
        await self.store.commit(self.callbacks.changes(task, spec, kind))
        self.callbacks.wake()
        return task

    async def empty(self, seconds=20):
        """Nothing waits any more."""
        with trio.fail_after(seconds):
            while True:
                forgotten = self.callbacks.forgotten
                if not await self.store.callbacks():
                    return
                await forgotten.wait()


@asynccontextmanager
async def delivering(store=None, **settings):
    world = World(store, **settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(world.callbacks.run)
        yield world
        nursery.cancel_scope.cancel()


async def test_a_callback_arrives_in_our_format():
    async with receiving() as receiver, delivering() as world:
        task = await world.tell(receiver.url, "ended", state=TaskState.FAILED, exit_code=3, reason="exit 3")
        first, headers, body = await receiver.next()
        assert first == "POST /cb?x=1 HTTP/1.1"
        assert body == {
            "id": task.id,
            "name": "resize",
            "event": "ended",
            "state": "failed",
            "reason": "exit 3",
            "exit_code": 3,
            "node": "garage0000",
            "node_name": "garage",
            "attempt": 2,
            "metadata": {"order": "7"},
        }
        assert headers["host"] == f"127.0.0.1:{receiver.port}"
        assert headers["content-type"] == "application/json"
        assert headers["idempotency-key"].startswith(task.id)
        await world.empty()
        assert world.callbacks.statistics() == {"delivered": 1, "dropped": 0, "busy": 0}


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [
        (TaskState.RUNNING, "Started", None),
        (TaskState.SUCCEEDED, "Finished", 0),
        (TaskState.FAILED, "Failed", 3),
        (TaskState.CANCELLED, "Failed", None),
        (TaskState.TIMED_OUT, "Failed", None),
        (TaskState.LOST, "Failed", None),
    ],
)
async def test_a_task_of_the_original_api_is_told_in_its_words(state, status, code):
    async with receiving() as receiver, delivering() as world:
        task = await world.tell(receiver.url, state=state, exit_code=code, service_id=12)
        _, _, body = await receiver.next()
        assert body == {
            "ServiceID": 12,
            "ServiceName": "resize",
            "TaskId": task.id,
            "Status": status,
            "Target": "10.0.0.9",
            "ExitCode": code,
        }


async def test_a_task_that_never_ran_has_no_node():
    async with receiving() as receiver, delivering() as world:
        await world.tell(receiver.url, "ended", state=TaskState.CANCELLED, attempts=())
        _, _, body = await receiver.next()
        assert (body["node"], body["node_name"], body["attempt"]) == (None, None, None)
        await world.tell(receiver.url, "ended", state=TaskState.CANCELLED, attempts=(), service_id=1)
        assert (await receiver.next())[2]["Target"] == ""


async def test_without_a_url_nothing_is_kept():
    world = World()
    await world.tell(None)
    assert await world.store.callbacks() == []


async def test_tasks_do_not_wait_for_each_other_but_keep_their_own_order():
    async with receiving() as receiver, delivering() as world:
        receiver.answers = [b"500 No", b"503 No"]
        for kind in ("one", "two", "three"):
            await world.tell(receiver.url, kind)
        await world.empty()
        assert [body["event"] for _, _, body in receiver.got] == ["one", "one", "one", "two", "three"]
        keys = [headers["idempotency-key"] for _, headers, _ in receiver.got]
        assert len(set(keys[:3])) == 1
        assert len(set(keys)) == 3

        held = trio.Event()

        async def hold(stream):
            await held.wait()
            return b"204 Taken"

        receiver.answers = [hold]
        await world.tell(receiver.url, "stuck", number=1)
        await wait_all_tasks_blocked(0.01)
        await world.tell(receiver.url, "after", number=1)
        await world.tell(receiver.url, "other", number=2)
        for _ in range(5):
            await receiver.next()
        assert (await receiver.next())[2]["event"] == "other"
        held.set()
        assert [(await receiver.next())[2]["event"] for _ in range(2)] == ["stuck", "after"]


async def test_a_receiver_that_is_not_there_yet_is_tried_again():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        async with delivering() as world:
            await world.tell(f"http://127.0.0.1:{port}/")
            await wait_all_tasks_blocked(0.05)
            sock.close()
            async with receiving(port=port) as receiver:
                await receiver.next()
                await world.empty()


async def test_waits_double_with_jitter_up_to_a_limit(monkeypatch, autojump_clock):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 1.0)
    world = World(give_up_s=1e9)
    times = []

    async def refuse(callback):
        times.append(trio.current_time())
        if len(times) < 14:
            raise module.NotDeliveredError("500")

    monkeypatch.setattr(world.callbacks, "_send", refuse)
    async with trio.open_nursery() as nursery:
        await nursery.start(world.callbacks.run)
        await world.tell("http://x.example/")
        await world.empty(1e6)
        nursery.cancel_scope.cancel()
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert all(0.5 * due <= gap <= due for gap, due in zip(gaps, [2.0**n for n in range(9)], strict=False))
    assert all(150 <= gap <= 300 for gap in gaps[9:])


async def test_what_was_not_taken_for_too_long_is_dropped():
    async with receiving() as receiver, delivering(give_up_s=60) as world:
        receiver.answers = [b"500 No"] * 3
        await world.tell(receiver.url, "old")
        await receiver.next()
        world.since_boot += 61
        await world.tell(receiver.url, "new", number=1)
        await world.empty()
        assert (world.callbacks.dropped, world.callbacks.delivered) == (1, 1)


async def test_what_seems_old_after_a_restart_is_tried_for_a_while(monkeypatch):
    monkeypatch.setattr(module, "AT_LEAST_S", 30)
    async with receiving() as receiver:
        world = World(give_up_s=60)
        world.now -= 86_400
        await world.tell(receiver.url)
        world = World(world.store, give_up_s=60)
        receiver.answers = [b"500 No"] * 2
        async with trio.open_nursery() as nursery:
            await nursery.start(world.callbacks.run)
            await world.empty()
            nursery.cancel_scope.cancel()
        assert (world.callbacks.dropped, world.callbacks.delivered) == (0, 1)


@pytest.mark.parametrize("days", [1, -1])
async def test_a_clock_that_jumps_drops_nothing(days):
    async with receiving() as receiver, delivering(give_up_s=60) as world:
        receiver.answers = [b"500 No"] * 3
        await world.tell(receiver.url)
        await receiver.next()
        world.now += days * 86_400
        await world.tell(receiver.url, "ended", number=0)
        await world.empty()
        assert (world.callbacks.dropped, world.callbacks.delivered) == (0, 2)
        assert [body["event"] for _, _, body in receiver.got] == ["started"] * 4 + ["ended"]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_what_was_not_taken_goes_out_after_a_restart(kind, tmp_path):
    @asynccontextmanager
    async def life(before=None):
        async with trio.open_nursery() as nursery:
            store = before or MemoryStore()
            if kind == "sqlite":
                store = SqliteStore(tmp_path / "edgeorch.db", Seams(wall=lambda: NOW))
                await nursery.start(store.serve)
            async with delivering(store) as world:
                yield world
            nursery.cancel_scope.cancel()

    async with receiving() as receiver:
        async with life() as world:
            receiver.answers = [b"500 No"] * 1000
            await world.tell(receiver.url, "one")
            _, headers, _ = await receiver.next()
            await world.tell(receiver.url, "two")
            kept = world.store
        receiver.answers = []
        receiver.got.clear()
        async with life(kept.reopened() if kind == "memory" else None) as world:
            # The clock of a board without a battery: before everything that waits.
            world.now = NOW - 1e6
            await world.tell(receiver.url, "three")
            await world.empty()
        assert [body["event"] for _, _, body in receiver.got] == ["one", "two", "three"]
        assert receiver.got[0][1]["idempotency-key"] == headers["idempotency-key"]


async def test_a_delivery_that_cannot_be_recorded_is_recorded_later(monkeypatch, autojump_clock):
    world = World(FailingStore(MemoryStore()))
    sent = []

    async def take(callback):
        sent.append(callback.id)
        world.store.failing = len(sent) == 1

    monkeypatch.setattr(world.callbacks, "_send", take)
    async with trio.open_nursery() as nursery:
        await nursery.start(world.callbacks.run)
        await world.tell("http://x.example/")
        await wait_all_tasks_blocked()
        world.store.failing = False
        await world.empty()
        nursery.cancel_scope.cancel()
    assert len(sent) == 1


async def test_an_outbox_that_cannot_be_read_is_read_again(monkeypatch):
    async with receiving() as receiver:
        world = World()
        await world.tell(receiver.url)
        read, failures = world.store.callbacks, [1, 2]

        async def sometimes():
            if failures:
                raise module.StorageError(f"bad block {failures.pop()}")
            return await read()

        monkeypatch.setattr(world.store, "callbacks", sometimes)
        async with trio.open_nursery() as nursery:
            await nursery.start(world.callbacks.run)
            await receiver.next()
            nursery.cancel_scope.cancel()


async def test_the_outbox_is_read_only_for_callbacks(monkeypatch, nursery):
    world = World()
    reads = []
    read = world.store.callbacks

    async def counted():
        reads.append(1)
        return await read()

    monkeypatch.setattr(world.store, "callbacks", counted)
    await nursery.start(world.callbacks.run)
    for _ in range(5):
        world.callbacks.wake()
        await wait_all_tasks_blocked()
    assert len(reads) == 1
    nursery.cancel_scope.cancel()


async def test_redirects_are_not_followed():
    async with receiving() as elsewhere, receiving() as receiver, delivering() as world:
        receiver.answers = [b"307 Go\r\nLocation: %s" % elsewhere.url.encode()]
        await world.tell(receiver.url)
        await world.empty()
        assert (len(receiver.got), elsewhere.got) == (2, [])


async def test_a_receiver_that_says_nothing_is_left_after_the_timeout():
    hung = []

    async def hang(stream):
        hung.append(True)
        assert await stream.receive_some() == b""

    async with receiving() as receiver, delivering(timeout_s=0.1) as world:
        receiver.answers = [hang]
        await world.tell(receiver.url)
        await world.empty()
        assert (hung, len(receiver.got), world.callbacks.delivered) == ([True], 2, 1)


async def test_the_body_of_an_answer_is_not_read():
    async def endless(stream):
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"x" * 65536)

    async with receiving() as receiver, delivering() as world:
        receiver.answers = [endless]
        await world.tell(receiver.url)
        await receiver.next()
        await world.empty()
        assert world.callbacks.delivered == 1


async def test_a_name_with_several_addresses_is_tried_at_each(monkeypatch):
    """``localhost`` is ::1 first on most machines, and many receivers listen on 127.0.0.1 alone."""
    known = socket.getaddrinfo

    def resolve(host, *more, **how):
        if host != "kitchen.example":
            return known(host, *more, **how)
        return [(None, None, None, "", (address, 0)) for address in ("127.9.9.9", "127.0.0.1")]

    monkeypatch.setattr(module.socket, "getaddrinfo", resolve)
    async with receiving() as receiver, delivering() as world:
        await world.tell(f"http://kitchen.example:{receiver.port}/")
        _, headers, _ = await receiver.next()
        assert headers["host"] == f"kitchen.example:{receiver.port}"
        await world.empty()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f.1:{port}/",
        "http://localhost:{port}/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://100.100.100.200/",
        "http://224.0.0.251/",
        "http://0.0.0.0:{port}/",
        "http://kitchen.example/\x7f",
        "http://[::1/",
        "http://\u0378.example/",
    ],
)
async def test_where_a_callback_must_not_go_it_does_not_and_the_node_lives(url):
    caller = Caller(token="t", role="submit", loopback=False)
    async with receiving() as receiver, delivering() as world:
        await world.tell(url.format(port=receiver.port), caller=caller)
        await world.empty()
        assert (receiver.got, world.callbacks.dropped) == ([], 1)
        # Others still go out.
        await world.tell(receiver.url, number=1)
        await receiver.next()


async def test_of_several_addresses_only_those_that_policy_lists_are_tried(monkeypatch):
    """And the one that was looked at is the one that is connected to, whatever the name says next."""
    answers = iter([["169.254.169.254", "127.0.0.1"], ["169.254.169.254"]])
    known = socket.getaddrinfo

    def resolve(host, *more, **how):
        if host != "rebinding.example":
            return known(host, *more, **how)
        return [(None, None, None, "", (address, 0)) for address in next(answers)]

    monkeypatch.setattr(module.socket, "getaddrinfo", resolve)
    async with receiving() as receiver, delivering() as world:
        await world.tell(f"http://rebinding.example:{receiver.port}/")
        await receiver.next()
        await world.empty()
        await world.tell(f"http://rebinding.example:{receiver.port}/", number=1)
        await world.empty()
        assert (world.callbacks.delivered, world.callbacks.dropped) == (1, 1)


async def test_a_redirect_is_not_followed_and_what_is_not_listed_is_not_tried():
    async def elsewhere(stream):
        await stream.send_all(b"HTTP/1.1 307 Away\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n")

    async with receiving() as receiver, delivering() as world:
        receiver.answers = [elsewhere]
        await world.tell(receiver.url)
        await world.empty()
        assert [await receiver.next() and None for _ in range(2)] == [None, None]
        assert {first for first, _, _ in receiver.got} == {"POST /cb?x=1 HTTP/1.1"}
        world.targets = CallbackTargets(("hooks.example",))
        await world.tell(receiver.url, number=1)
        await world.empty()
        assert (len(receiver.got), world.callbacks.dropped) == (2, 1)


async def test_an_answer_cut_short_or_not_http_is_tried_again():
    async def garbage(stream):
        await stream.send_all(b"SSH-2.0-OpenSSH_9\r\n")

    async def nothing(stream):
        return b""

    async with receiving() as receiver, delivering() as world:
        receiver.answers = [garbage, nothing]
        await world.tell(receiver.url)
        await world.empty()
        assert (len(receiver.got), world.callbacks.delivered) == (3, 1)
