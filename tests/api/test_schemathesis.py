"""The API against its own OpenAPI document: generated requests, a real listener, a node in memory."""

import threading
import time
import warnings
from datetime import UTC, datetime

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings

from edgeorch.config import Api, Node
from edgeorch.rest.api import create_app, routes_of
from edgeorch.rest.auth import Tokens
from edgeorch.rest.openapi import document
from edgeorch.rest.server import Server
from edgeorch.rest.tokens import Token, hash_of, new_text, write_tokens
from edgeorch.testing.backend import MemoryBackend

# What schemathesis imports uses what its own dependencies deprecate; ours stay errors.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis

TOKEN = new_text()


class Forgetful(MemoryBackend):
    """Takes no notice of Idempotency-Keys: generated requests repeat them, and 422 would be right then."""

    async def submit(self, submissions, caller, idempotency=None):
        return await super().submit(submissions, caller)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server in a thread of its own, because schemathesis is not asynchronous."""
    path = tmp_path_factory.mktemp("api") / "tokens.toml"
    created = datetime(2023, 1, 1, tzinfo=UTC)
    path.write_bytes(write_tokens([Token(name="t", role="admin", sha256=hash_of(TOKEN), created=created)]))
    ready, found = threading.Event(), {}

    async def serve():
        api = Api(port=0, failed_logins_per_minute=1_000_000)
        backend = Forgetful()
        backend.ended.add(None)
        backend.ends = True
        app = create_app(backend, Tokens(path, api), api, metrics=lambda: b"", wall=time.time)
        server = Server(app, api, Node(listen=("127.0.0.1",)), None)
        async with trio.open_nursery() as nursery:
            ((host, port),) = await nursery.start(server.run)
            found.update(url=f"http://{host}:{port}", server=server, token=trio.lowlevel.current_trio_token())
            ready.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(10)
    yield found["url"]
    trio.from_thread.run(found["server"].stop, 1, trio_token=found["token"])
    thread.join(10)
    assert not thread.is_alive()


schema = schemathesis.openapi.from_dict(document(routes_of(None, metrics=lambda: b"", wall=time.time)))


@schema.hook
def map_body(context, body):
    """JSON Schema takes 1.0 for an integer; we take it for a mistake."""
    if isinstance(body, dict):
        return {key: map_body(context, value) for key, value in body.items()}
    if isinstance(body, list):
        return [map_body(context, value) for value in body]
    return int(body) if isinstance(body, float) and body.is_integer() else body


@schema.parametrize()
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_requests_from_the_document(case, url):
    # The original's route answers 200 with INVALID_PARAMETER, as callers of the original expect.
    lenient = case.operation.path == "/api/v1/orchestration/services"
    case.call_and_validate(
        excluded_checks=[schemathesis.checks.negative_data_rejection] if lenient else [],
        base_url=url,
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=10,
    )
