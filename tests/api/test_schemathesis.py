"""The API against its own OpenAPI document: generated requests, a real listener, whole nodes in memory."""

import threading
import time
import warnings
import zlib
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings

from edgeorch.config import Api, Node
from edgeorch.rest.api import create_app, routes_of
from edgeorch.rest.auth import Tokens
from edgeorch.rest.openapi import document
from edgeorch.rest.server import Server
from edgeorch.rest.steps import Steps
from edgeorch.rest.tokens import Token, hash_of, new_text, write_tokens
from edgeorch.testing.fleet import ADMIN, VirtualFleet

# What schemathesis imports uses what its own dependencies deprecate; ours stay errors.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis

TOKEN = new_text()
MOMENT_S = 0.05


class Hasty:
    """A node's dispatch that waits for nothing long: generated requests ask for any time.

    Nor does it heed Idempotency-Keys: generated requests repeat them, and 422 would be right then.
    """

    def __init__(self, dispatch):
        self._dispatch = dispatch

    def __getattr__(self, name):
        return getattr(self._dispatch, name)

    async def submit(self, submissions, caller, idempotency=None):
        return await self._dispatch.submit(submissions, caller)

    async def wait(self, task_id, caller, seconds):
        return await self._dispatch.wait(task_id, caller, min(seconds, MOMENT_S))

    async def wait_placed(self, task_id, seconds):
        return await self._dispatch.wait_placed(task_id, min(seconds, MOMENT_S))

    @asynccontextmanager
    async def events(self, task_id, caller, after):
        async with (
            self._dispatch.events(task_id, caller, after) as events,
            aclosing(soon_over(events)) as found,
        ):
            yield found


async def soon_over(events):
    end = trio.current_time() + MOMENT_S
    while True:
        event = None
        with trio.move_on_at(end):
            event = await anext(events, None)
        if event is None:
            return
        yield event


class Whole:
    """Two virtual nodes with real dispatch and executor, and a real listener in front of the first."""

    def __init__(self, folder):
        self.folder = folder
        self.ready = threading.Event()

    async def serve(self):
        created = datetime(2023, 1, 1, tzinfo=UTC)
        path = self.folder / "tokens.toml"
        path.write_bytes(
            write_tokens([Token(name="t", role="admin", sha256=hash_of(TOKEN), created=created)])
        )
        api = Api(port=0, failed_logins_per_minute=1_000_000)
        fleet = VirtualFleet(self.folder)
        async with trio.open_nursery() as nursery:
            for name in ("barn", "shed"):
                node = fleet.add(name)
                await nursery.start(node.host.run)
                await nursery.start(node.run)
            await self._make_known(fleet)
            backend = Hasty(fleet.nodes["barn"].dispatch)
            app = create_app(backend, Tokens(path, api), api, metrics=lambda: b"", wall=time.time)
            server = Server(app, api, Node(listen=("127.0.0.1",)), None)
            ((host, port),) = await nursery.start(server.run)
            self.url = f"http://{host}:{port}"
            self.token, self.scope = trio.lowlevel.current_trio_token(), nursery.cancel_scope
            self.ready.set()

    async def _make_known(self, fleet):
        """What requests may find: ended tasks of both nodes, and a parent."""
        barn, shed = fleet.nodes["barn"], fleet.nodes["shed"]
        tasks = [
            await barn.submit("print", "a", ";", "exit", "3"),
            await shed.submit("print", "b"),
            await barn.submit("print", "c", placement={"mode": "all"}),
        ]
        for task in tasks:
            await barn.dispatch.wait(task.id, ADMIN, 10)
        self.tasks = [task.id for task in tasks]
        self.nodes = ["self", "shed", barn.id, shed.id]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The server in a thread of its own, because schemathesis is not asynchronous."""
    whole = Whole(tmp_path_factory.mktemp("api"))
    thread = threading.Thread(target=trio.run, args=(whole.serve,))
    thread.start()
    assert whole.ready.wait(10)
    yield whole
    whole.token.run_sync_soon(whole.scope.cancel)
    thread.join(10)
    assert not thread.is_alive()


schema = schemathesis.openapi.from_dict(
    document(routes_of(None, metrics=lambda: b"", wall=time.time, steps=Steps()))
)


@schema.hook
def map_body(context, body):
    """JSON Schema takes 1.0 for an integer; we take it for a mistake."""
    if isinstance(body, dict):
        return {key: map_body(context, value) for key, value in body.items()}
    if isinstance(body, list):
        return [map_body(context, value) for value in body]
    return int(body) if isinstance(body, float) and body.is_integer() else body


def aim(case, whole):
    """Every other valid request is about something that exists."""
    if "id" in (case.path_parameters or {}) and case.meta.generation.mode.is_positive:
        known = whole.nodes if "/nodes/" in case.operation.path else whole.tasks
        number = zlib.crc32(repr(case).encode())
        if number % 2:
            case.path_parameters["id"] = known[number % len(known)]


@schema.parametrize()
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_requests_from_the_document(case, whole):
    aim(case, whole)
    response = case.call(base_url=whole.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10)
    excluded = []
    # The original's route answers 200 with INVALID_PARAMETER, as callers of the original expect.
    if case.operation.path == "/api/v1/orchestration/services":
        excluded.append(schemathesis.checks.negative_data_rejection)
    # What the document says is checked by REST, which names the path; dispatch knows rules beyond any schema.
    if response.status_code == 400 and "path" not in response.json():
        excluded.append(schemathesis.checks.positive_data_acceptance)
    # A body that is too large is refused before anybody looks at it.
    if response.status_code == 413:
        excluded.append(schemathesis.checks.negative_data_rejection)
    case.validate_response(response, excluded_checks=excluded)
