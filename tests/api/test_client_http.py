"""Both clients and the command line against the real REST server, with a node in memory behind it."""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import msgspec
import pytest
import trio
import trustme

from edgeorch.client import AsyncClient, Client, TaskFilter
from edgeorch.client.endpoint import Endpoint
from edgeorch.config import Api, Node
from edgeorch.errors import (
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    KeyReusedError,
    NodeUnreachableError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
)
from edgeorch.model import AttemptState, Event, TaskState
from edgeorch.rest.api import create_app
from edgeorch.rest.auth import Tokens
from edgeorch.rest.server import Server
from edgeorch.rest.tokens import Token, hash_of, write_tokens
from edgeorch.testing.backend import WALL, MemoryBackend
from edgeorch.wire.messages import Chunk

SPEC = {"name": "hello", "service": [{"driver": "native", "argv": ["uname"]}]}
SECRET = "edgeorch_test"


class Running:
    """A server with its backend."""

    def __init__(self, backend, url, ca):
        self.backend, self.url, self.ca = backend, url, ca

    @property
    def endpoint(self):
        return Endpoint(url=self.url, token=SECRET, ca=self.ca)

    def finish(self, task_id, state="succeeded", attempt_state=None, **attempt):
        """End a task, tell the event and end its output."""
        task = self.backend.known[task_id]
        last = msgspec.structs.replace(
            task.attempts[-1], state=AttemptState(attempt_state or state), **attempt
        )
        code = attempt.get("exit_code", 0 if state == "succeeded" else None)
        ended = msgspec.structs.replace(
            task, state=TaskState(state), ended_at=WALL, exit_code=code, attempts=(*task.attempts[:-1], last)
        )
        self.backend.put(ended)
        self.backend.tell(Event(task=task_id, at=WALL, type="state", data={"state": state}))
        self.backend.ended.add(task_id)
        self.backend.print(end="ended")

    async def submitted(self):
        """The id of the newest task, once there is one."""
        await self.backend.until(lambda: bool(self.backend.known))
        return max(self.backend.known)


@asynccontextmanager
async def serving(tmp_path, *, tls=False):
    created = datetime(2026, 1, 1, tzinfo=UTC)
    tokens = tmp_path / "tokens.toml"
    tokens.write_bytes(
        write_tokens([Token(name="laptop", role="admin", sha256=hash_of(SECRET), created=created)])
    )
    context, ca = None, ""
    if tls:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        ca = str(tmp_path / "ca.pem")
        authority.cert_pem.write_to_path(ca)
    api = Api(port=0)
    backend = MemoryBackend()
    app = create_app(backend, Tokens(tokens, api), api, metrics=lambda: b"", wall=time.time)
    server = Server(app, api, Node(listen=("127.0.0.1",)), (lambda: context) if tls else None)
    async with trio.open_nursery() as nursery:
        (address,) = await nursery.start(server.run)
        yield Running(backend, f"{'https' if tls else 'http'}://127.0.0.1:{address[1]}", ca)
        with trio.fail_after(10):
            await server.stop(1)


@pytest.fixture
async def node(tmp_path):
    async with serving(tmp_path) as running:
        yield running


async def test_submit_read_list_cancel(node):
    async with AsyncClient(endpoint=node.endpoint) as client:
        task = await client.submit(SPEC, idempotency_key="k")
        assert (task.state, task.spec, task.current.node_name) == ("running", SPEC, "one")
        assert (await client.submit(SPEC, idempotency_key="k")).id == task.id
        with pytest.raises(KeyReusedError):
            await client.submit(SPEC | {"name": "other"}, idempotency_key="k")
        batch = await client.submit_batch([SPEC, SPEC])
        assert len({one.id for one in batch} | {task.id}) == 3
        async with client.tasks(TaskFilter(limit=2)) as found:
            assert {one.id async for one in found} == {task.id, *(one.id for one in batch)}
        page = await client.tasks_page(TaskFilter(state="running", name="hello"))
        assert page.unreachable == ("two",)
        assert (await client.cancel(task.id)).state == "cancelled"
        assert (await client.task(task.id)).ended


async def test_what_the_node_refuses_comes_as_its_error(node):
    async with AsyncClient(endpoint=node.endpoint) as client:
        with pytest.raises(InvalidRequestError, match="argv"):
            await client.submit({"name": "x", "service": [{"driver": "native", "argv": []}]})
        with pytest.raises(NotFoundError):
            await client.task("01jc6v1w5m2n9d4z8q7x3k0h6t-0123456789")
        with pytest.raises(ConflictError):
            await client.forget_node("two")
        node.backend.raises = ForbiddenError("no", hint="ask")
        with pytest.raises(ForbiddenError) as caught:
            await client.submit(SPEC)
        assert caught.value.hint == "ask"
    async with AsyncClient(node.url, token="wrong") as client:
        with pytest.raises(UnauthorizedError):
            await client.nodes()


async def test_nodes(node):
    async with AsyncClient(endpoint=node.endpoint) as client:
        one, two = await client.nodes()
        assert (one.name, one.is_self, one.score.reasons, one.slots) == ("one", True, ("idle",), 4)
        assert (await client.change_node("two", "drain")).state == "draining"
        assert (await client.node(two.id)).state == "draining"
        assert [line.node_name for line in await client.explain(SPEC)] == ["one", "two"]
        await client.ready()
        node.backend.wrong = {"store": "disk full"}
        with pytest.raises(UnavailableError, match="store"):
            await client.ready()


async def test_waiting_and_following_end_with_the_task(node, nursery):
    node.backend.print(Chunk(stream="stdout", offset=0, data=b"one "))
    async with AsyncClient(endpoint=node.endpoint) as client:
        task = await client.submit(SPEC)
        waited = trio.Event()

        async def wait():
            assert (await client.wait(task.id)).state == "succeeded"
            waited.set()

        nursery.start_soon(wait)
        got = b""
        with trio.fail_after(10):
            async with client.output(task.id, follow=True) as pieces:
                async for piece in pieces:
                    got += piece.data
                    if got == b"one ":
                        node.backend.print(Chunk(stream="stdout", offset=4, data=b"\xfftwo"))
                        node.finish(task.id)
            await waited.wait()
        assert got == b"one \xfftwo"
        async with client.events(task.id) as events:
            assert [event.data["state"] async for event in events] == ["succeeded"]


async def test_leaving_a_stream_closes_it(node):
    node.backend.print(Chunk(stream="stdout", offset=0, data=b"x"))
    async with AsyncClient(endpoint=node.endpoint) as client:
        task = await client.submit(SPEC)
        with trio.fail_after(10):
            async with client.output(task.id, follow=True) as pieces:
                await anext(pieces)
            await node.backend.until(lambda: node.backend.streams == 0)


async def test_the_plain_client_does_the_same(node):
    def use():
        with Client(endpoint=node.endpoint) as client:
            task = client.submit(SPEC)
            with client.output(task.id) as pieces:
                data = b"".join(piece.data for piece in pieces)
            with client.tasks() as found:
                ids = [one.id for one in found]
            assert client.cancel(task.id).state == "cancelled"
            assert client.wait(task.id).state == "cancelled"
            return data, ids == [task.id], len(client.nodes())

    node.backend.print(Chunk(stream="stderr", offset=0, data=b"hi"), end="ended")
    with trio.fail_after(10):
        assert await trio.to_thread.run_sync(use) == (b"hi", True, 2)


async def test_tls_is_checked_against_the_fleets_ca(tmp_path):
    async with serving(tmp_path, tls=True) as node:
        async with AsyncClient(endpoint=node.endpoint) as client:
            assert len(await client.nodes()) == 2
        async with AsyncClient(node.url, token=SECRET) as client:
            with pytest.raises(NodeUnreachableError) as caught:
                await client.nodes()
            assert "--ca" in caught.value.hint
            assert not caught.value.sent
        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(other)
        async with AsyncClient(node.url, token=SECRET, ca=str(other)) as client:
            with pytest.raises(NodeUnreachableError):
                await client.nodes()


# The command line as a process


class Command:
    """``edgeorch WORDS`` against a node."""

    def __init__(self, process):
        self.process = process
        self.out = self.err = b""

    async def text(self, until):
        """Read stderr until it has this."""
        while until not in self.err:
            piece = await self.process.stderr.receive_some()
            assert piece, self.err
            self.err += piece

    async def end(self):
        """(exit code, stdout, stderr)."""

        async def read(name, stream):
            async for piece in stream:
                setattr(self, name, getattr(self, name) + piece)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, "out", self.process.stdout)
            nursery.start_soon(read, "err", self.process.stderr)
        return await self.process.wait(), self.out.decode(errors="replace"), self.err.decode()


@pytest.fixture
async def command(node, tmp_path, nursery):
    started = []

    async def start(*words, stdin=b""):
        env = {name: value for name, value in os.environ.items() if not name.startswith("EDGEORCH_")}
        env |= {"XDG_CONFIG_HOME": str(tmp_path), "EDGEORCH_URL": node.url, "EDGEORCH_TOKEN": SECRET}
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "edgeorch", *words],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        await process.stdin.send_all(stdin)
        await process.stdin.aclose()
        return Command(process)

    with trio.fail_after(60):
        yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("state", "how", "code"),
    [
        ("succeeded", {"exit_code": 0}, 0),
        ("failed", {"exit_code": 7}, 7),
        ("failed", {"signal": 9}, 137),
        ("failed", {"reason": "no such image"}, 1),
        ("timed_out", {}, 5),
        ("lost", {}, 1),
    ],
)
async def test_run_prints_what_the_task_prints_and_exits_as_it_did(node, command, state, how, code):
    node.backend.print(
        Chunk(stream="stdout", offset=0, data=b"out\xff\n"), Chunk(stream="stderr", offset=0, data=b"err\n")
    )
    node.backend.end = None
    running = await command("run", "--on", "arch == amd64", "-e", "A=1", "--", "uname", "-a")
    task_id = await node.submitted()
    spec = json.loads(node.backend.known[task_id].spec)
    assert spec["service"] == [{"driver": "native", "argv": ["uname", "-a"], "env": {"A": "1"}}]
    assert spec["placement"]["constraints"] == ["arch == amd64"]
    await running.text(b"err\n")
    node.finish(task_id, state, **how)
    got, _, err = await running.end()
    assert got == code, err
    assert running.out == b"out\xff\n"
    assert task_id in err
    if reason := how.get("reason"):
        assert reason in err


async def test_ctrl_c_cancels_the_task(node, command):
    node.backend.end = None
    running = await command("run", "--", "sleep", "100")
    await running.text(b"running on one")
    running.process.send_signal(signal.SIGINT)
    await running.text(b"cancelling")
    task_id = await node.submitted()
    await node.backend.until(lambda: node.backend.known[task_id].state is TaskState.CANCELLED)
    node.finish(task_id, "cancelled")
    code, _, err = await running.end()
    assert code == 130
    assert "Traceback" not in err


async def test_a_second_ctrl_c_leaves_at_once(node, command):
    node.backend.end = None
    running = await command("run", "--", "sleep", "100")
    await running.text(b"running on one")
    running.process.send_signal(signal.SIGINT)
    await running.text(b"cancelling")
    running.process.send_signal(signal.SIGINT)
    code, _, err = await running.end()
    assert code == 130
    assert "task show" in err


async def test_submit_from_stdin_and_dry_run(node, command):
    document = json.dumps(SPEC).encode()
    code, out, _ = await (await command("submit", "-", stdin=document)).end()
    assert (code, out.strip()) == (0, await node.submitted())
    code, out, _ = await (await command("submit", "--dry-run", "-", stdin=document)).end()
    assert code == 0
    assert out.splitlines()[1] == "one\tnative\t1\tidle"
    assert node.backend.submitted == 1
    code, _, err = await (await command("submit", "-", stdin=b'{"name": "x"}')).end()
    assert code == 4
    assert "service" in err


async def test_lists_and_states(node, command):
    async with AsyncClient(endpoint=node.endpoint) as client:
        task = await client.submit(SPEC)
    code, out, err = await (await command("tasks", "--json")).end()
    assert (code, json.loads(out)["tasks"][0]["id"]) == (0, task.id)
    assert "two" in err, "the answer is incomplete, and it says so"
    code, out, _ = await (await command("nodes", "--why")).end()
    assert out.splitlines() == ["NODE\tSTATE\tSCORE\tWHY", "one*\talive\t1\tidle", "two\talive\t1\tidle"]
    code, out, _ = await (await command("drain", "two")).end()
    assert (code, out) == (0, "two\tdraining\n")
    code, out, _ = await (await command("status", "--json")).end()
    assert code == 1, "the tasks of two cannot be listed"
    assert json.loads(out)["tasks"] == {"running": 1}
    code, out, _ = await (await command("top")).end()
    assert task.id in out
    code, out, _ = await (await command("task", "show", task.id)).end()
    assert out.splitlines()[1] == f"id\t{task.id}"
    node.backend.print(Chunk(stream="stdout", offset=0, data=b"hi\n"), end="ended")
    code, out, _ = await (await command("task", "output", task.id)).end()
    assert out == "hi\n"
    code, out, _ = await (await command("task", "cancel", task.id)).end()
    assert out == f"{task.id}\tcancelled\n"
    code, _, err = await (await command("task", "show", "nonsense")).end()
    assert code == 4
    assert err.startswith("edgeorch: ")
