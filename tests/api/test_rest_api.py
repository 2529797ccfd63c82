"""Every route through Quart's test client, with a node in memory behind it."""

import json
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import trio

from edgeorch.config import Api
from edgeorch.errors import (
    DockerOptionError,
    InvalidRequestError,
    NodeUnreachableError,
    NotFoundError,
    OriginUnreachableError,
    PolicyError,
    StorageError,
    TooManyTasksError,
    UnavailableError,
    problem_types,
)
from edgeorch.model import Caller, Event, TaskState, ulid
from edgeorch.rest import events
from edgeorch.rest.api import create_app
from edgeorch.rest.auth import Tokens
from edgeorch.rest.probes import ProbeRoutes
from edgeorch.rest.routes import Asked
from edgeorch.rest.tokens import Token, hash_of, new_text, write_tokens
from edgeorch.store import PutAudit
from edgeorch.testing.backend import OWN_ID, WALL, MemoryBackend
from edgeorch.wire.messages import Chunk

SPEC = {"name": "a", "service": [{"driver": "native", "argv": ["true"], "env": {"KEY": "secret"}}]}
ORIGINAL = {
    "ServiceName": "hello-world",
    "ServiceInfo": [
        {
            "ExecutionType": "container",
            "ExecCmd": ["docker", "run", "-v", "/var/run:/var/run:rw", "hello-world"],
        }
    ],
    "StatusCallbackURI": "http://localhost:8888/api/v1/services/notification",
}
UNKNOWN = "0" * 26 + "-" + OWN_ID


class Service:
    """The API under test, called as any role."""

    def __init__(self, tmp_path, **changes):
        roles = {"read": "read", "submit": "submit", "admin": "admin", "other": "submit"}
        self.words = {name: new_text() for name in roles}
        created = datetime(2023, 1, 1, tzinfo=UTC)
        path = Path(tmp_path, "tokens.toml")
        path.write_bytes(
            write_tokens(
                [
                    Token(name=name, role=role, sha256=hash_of(self.words[name]), created=created)
                    for name, role in roles.items()
                ]
            )
        )
        path.chmod(0o600)
        api = Api(**changes)
        self.backend = MemoryBackend()
        self.tokens = Tokens(path, api)
        self.app = create_app(
            self.backend, self.tokens, api, metrics=lambda: b"edgeorch_tasks 1\n", wall=lambda: WALL
        )
        self.client = self.app.test_client()

    async def ask(self, method, path, body=None, *, role="admin", headers=None, address="192.0.2.9"):
        headers = dict(headers or {})
        if role is not None:
            headers.setdefault("Authorization", f"Bearer {self.words[role]}")
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = await self.client.open(
            path, method=method, data=body, headers=headers, scope_base={"client": (address, 1)}
        )
        data = await response.get_data()
        return response, data

    async def json(self, method, path, body=None, *, status=200, **more):
        response, data = await self.ask(method, path, body, **more)
        assert response.status_code == status, data
        return json.loads(data)

    async def problem(self, status, slug, method, path, body=None, **more):
        response, data = await self.ask(method, path, body, **more)
        assert response.status_code == status, data
        assert response.headers["Content-Type"] == "application/problem+json"
        problem = json.loads(data)
        assert problem["type"] == f"/docs/problems#{slug}"
        assert problem["status"] == status
        assert problem["title"]
        assert problem["detail"]
        assert "hint" in problem
        return response, problem


@pytest.fixture
async def service(tmp_path):
    return Service(tmp_path)


# Submitting


async def test_submit(service):
    response, data = await service.ask("POST", "/api/v1/tasks", SPEC, role="submit")
    assert response.status_code == 202
    task = json.loads(data)
    assert response.headers["Location"] == f"/api/v1/tasks/{task['id']}"
    assert set(task) == {
        *("id", "name", "state", "reason", "cancelling", "origin", "created_at", "ended_at", "exit_code"),
        *("spec", "parent", "attempts"),
    }
    assert task["spec"] == SPEC
    assert task["created_at"] == "2023-11-14T22:13:20.000Z"
    assert set(task["attempts"][0]) == {
        *("number", "node", "node_name", "driver", "state", "started_at", "ended_at", "exit_code"),
        *("signal", "reason"),
    }
    assert service.backend.known[task["id"]].spec == json.dumps(SPEC).encode()


@pytest.mark.parametrize("role", ["submit", "admin"])
async def test_secrets_are_taken_and_never_shown_again(service, role):
    body = [{**SPEC, "secrets": {"a": "hunter2", "b": {"base64": "aHVudGVyMg=="}}}, SPEC]
    ranking = await service.json("POST", "/api/v1/tasks?dry_run=true", body[0], role=role)
    response, data = await service.ask("POST", "/api/v1/tasks", body, role=role)
    assert response.status_code == 202
    task = json.loads(data)["tasks"][0]
    assert task["spec"] == {**SPEC, "secrets": {"a": None, "b": None}}
    said = [ranking, task]
    said += [await service.json("GET", f"/api/v1/tasks{path}", role=role) for path in ("", f"/{task['id']}")]
    said.append(service.backend.known[task["id"]])
    assert "hunter2" not in repr(said)
    assert "aHVudGVyMg" not in repr(said)


@pytest.mark.parametrize(
    "secrets",
    [
        {"../a": "hunter2"},
        {"a": 1},
        {"a": {"base64": "hunter2"}},
        {"a": {"bas64": "hunter2"}},
        "hunter2",
        ["hunter2"],
    ],
)
async def test_secrets_that_are_refused_are_not_shown(service, secrets):
    _, problem = await service.problem(
        400, "invalid-request", "POST", "/api/v1/tasks", {**SPEC, "secrets": secrets}
    )
    assert "secrets" in problem["detail"]
    assert "hunter2" not in repr(problem)


async def test_the_document_says_that_secrets_are_only_written(service):
    schemas = (await service.json("GET", "/openapi.json"))["components"]["schemas"]
    text, _, shown = schemas["TaskSpec"]["properties"]["secrets"]["additionalProperties"]["anyOf"]
    assert text == {"type": "string", "writeOnly": True}
    assert schemas["SecretBytes"]["properties"]["base64"]["writeOnly"] is True
    assert shown == {"type": "null"}


async def test_submit_a_batch(service):
    answer = await service.json("POST", "/api/v1/tasks", [SPEC, {**SPEC, "name": "b"}], status=202)
    assert [task["name"] for task in answer["tasks"]] == ["a", "b"]
    assert json.loads(service.backend.known[answer["tasks"][1]["id"]].spec)["name"] == "b"


async def test_dry_run(service):
    answer = await service.json("POST", "/api/v1/tasks?dry_run=true", SPEC)
    assert [line["node_name"] for line in answer["ranking"]] == ["one", "two"]
    assert answer["ranking"][0]["score"] == {"value": 1.0, "reasons": ["idle"]}
    assert service.backend.submitted == 0
    answer = await service.json("POST", "/api/v1/tasks?dry_run=1", [SPEC, SPEC])
    assert [len(one["ranking"]) for one in answer["rankings"]] == [2, 2]
    assert service.backend.submitted == 0


async def test_idempotency_key(service):
    headers = {"Idempotency-Key": "k-1"}
    first = await service.json("POST", "/api/v1/tasks", SPEC, status=202, headers=headers)
    again = await service.json("POST", "/api/v1/tasks", SPEC, status=202, headers=headers)
    assert first["id"] == again["id"]
    other = {**SPEC, "name": "b"}
    await service.problem(422, "idempotency-key-reused", "POST", "/api/v1/tasks", other, headers=headers)
    for bad in ("", "a b", "x" * 256, "ü"):
        headers = {"Idempotency-Key": bad}
        await service.problem(400, "invalid-request", "POST", "/api/v1/tasks", SPEC, headers=headers)


async def test_prefer_wait_until_the_end(service, autojump_clock):
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def end():
            await service.backend.until(lambda: service.backend.known)
            (task,) = service.backend.known.values()
            service.backend.put(msgspec.structs.replace(task, state=TaskState.SUCCEEDED, exit_code=0))

        response, data = await service.ask("POST", "/api/v1/tasks", SPEC, headers={"Prefer": "wait=10"})
    assert response.status_code == 200
    assert json.loads(data)["state"] == "succeeded"
    assert response.headers["Preference-Applied"] == "wait=10"


async def test_prefer_wait_runs_out(service, autojump_clock):
    started = trio.current_time()
    headers = {"Prefer": "respond-async, wait=2.5"}
    response, _ = await service.ask("POST", "/api/v1/tasks", [SPEC, SPEC], headers=headers)
    assert response.status_code == 202
    assert trio.current_time() - started == pytest.approx(2.5)


@pytest.mark.parametrize("text", ["", "wait", "wait=-1", "wait=x", "wait=nan", "xwait=5", "wait=5x"])
async def test_a_preference_that_cannot_be_read_is_ignored(service, text):
    response, _ = await service.ask("POST", "/api/v1/tasks", SPEC, headers={"Prefer": text})
    assert response.status_code == 202
    assert "Preference-Applied" not in response.headers


@pytest.mark.parametrize(
    ("body", "path", "words"),
    [
        (b"", "$", "not valid JSON"),
        (b"{", "$", "not valid JSON"),
        (b'{"name": "a",\n  nope}', "$", "line 2, column 3"),
        (b'{"name": "\xff"}', "$", "not UTF-8"),
        (b'{"timeout_s": NaN}', "$", "not valid JSON"),
        (b"3", "$", "expected `object`"),
        (b"[]", "$", "length >= 1"),
        (b"[" * 100_000, "$", "nested too deeply"),
        (b'{"name": "a"}', "$", "missing required field `service`"),
        ({**SPEC, "timeout": 1}, "$", "unknown field 'timeout'"),
        ({**SPEC, "service": [{"driver": "docker"}]}, "$.service[0].driver", "'docker' is not known"),
        (
            {**SPEC, "service": [{"driver": "native", "argv": []}]},
            "$.service[0].argv",
            "length >= 1",
        ),
        (
            {**SPEC, "service": [{"driver": "native", "argv": ["a", 1]}]},
            "$.service[0].argv[1]",
            "expected `str`",
        ),
        ({**SPEC, "placement": {"mode": "bset"}}, "$.placement.mode", "'bset' is not known"),
        ({**SPEC, "retry": {"on": ["node_lsot"]}}, "$.retry.on[0]", "'node_lsot' is not known"),
        ([SPEC, {**SPEC, "nmae": 1}], "$[1]", "unknown field 'nmae'"),
        ([SPEC, 3], "$[1]", "expected `object`"),
    ],
)
async def test_a_bad_body_is_named(service, body, path, words):
    _, problem = await service.problem(400, "invalid-request", "POST", "/api/v1/tasks", body)
    assert problem["path"] == path
    assert words in problem["detail"]
    assert service.backend.submitted == 0


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"nmae": 1}, "did you mean 'name'?"),
        ({"service": [{"driver": "natve"}]}, "did you mean 'native'?"),
        ({"service": [{"driver": "native", "argv": ["a"], "evn": {}}]}, "did you mean 'env'?"),
        ({"service": [{"driver": "zzz"}]}, "known: container, native"),
        ({"placement": {"mode": "bset"}}, "did you mean 'best'?"),
        ({"placement": {"prefre": []}}, "did you mean 'prefer'?"),
        ({"retry": {"on": ["node_lsot"]}}, "did you mean 'node_lost'?"),
    ],
)
async def test_a_typo_gets_the_nearest_word(service, change, hint):
    _, problem = await service.problem(400, "invalid-request", "POST", "/api/v1/tasks", {**SPEC, **change})
    assert problem["hint"] == hint


@pytest.mark.parametrize("media", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_another_content_type(service, media):
    headers = {"Content-Type": media} if media else {"Content-Type": ""}
    await service.problem(
        415, "unsupported-media-type", "POST", "/api/v1/tasks", b'{"name":"a"}', headers=headers
    )


async def test_a_body_over_the_limit(tmp_path):
    service = Service(tmp_path, max_body=100)
    response, _ = await service.problem(413, "too-large", "POST", "/api/v1/tasks", b" " * 101)
    assert response.headers["Connection"] == "close"


async def test_a_refusal_by_policy_names_its_key(service):
    service.backend.raises = PolicyError("policy.images does not list x", hint="add it", key="policy.images")
    _, problem = await service.problem(403, "policy", "POST", "/api/v1/tasks", SPEC)
    assert (problem["key"], problem["hint"]) == ("policy.images", "add it")


async def test_too_many_open_tasks_are_worth_waiting_for(service):
    service.backend.raises = TooManyTasksError("policy.max_tasks is 2", key="policy.max_tasks")
    response, problem = await service.problem(429, "too-many-tasks", "POST", "/api/v1/tasks", SPEC)
    assert response.headers["Retry-After"] == str(problem["retry_after_s"])
    assert problem["key"] == "policy.max_tasks"
    response, _ = await service.ask("POST", "/api/v1/orchestration/services", ORIGINAL, role="submit")
    assert response.status_code == 200
    assert response.headers["Retry-After"] == str(problem["retry_after_s"])


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (PolicyError("policy.native forbids it"), 403, "policy"),
        (StorageError("disk full"), 507, "insufficient-storage"),
        (UnavailableError("draining"), 503, "unavailable"),
        (DockerOptionError("--foo"), 400, "invalid-docker-option"),
    ],
)
async def test_errors_of_the_node_are_problems(service, error, status, slug):
    service.backend.raises = error
    response, problem = await service.problem(status, slug, "POST", "/api/v1/tasks", SPEC)
    assert problem["detail"] == error.detail
    assert ("Retry-After" in response.headers) == (status == 503)


# Reading


async def test_list_pages_and_filters(service):
    for name in ("a", "b", "c"):
        await service.json("POST", "/api/v1/tasks", {**SPEC, "name": name}, status=202)
    page = await service.json("GET", "/api/v1/tasks?limit=2")
    assert [task["name"] for task in page["tasks"]] == ["c", "b"]
    assert page["unreachable"] == ["two"]
    page = await service.json("GET", f"/api/v1/tasks?limit=2&local=true&cursor={page['cursor']}")
    assert [task["name"] for task in page["tasks"]] == ["a"]
    assert page["cursor"] is None
    assert page["unreachable"] == []
    page = await service.json("GET", "/api/v1/tasks?name=b&state=running,waiting&node=one&state=failed")
    assert [task["name"] for task in page["tasks"]] == ["b"]
    assert (await service.json("GET", "/api/v1/tasks?state=failed"))["tasks"] == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("limit=x", "limit"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("stat=running", "stat"),
        ("state=runing", "state"),
        ("local=maybe", "local"),
        ("cursor=3", "cursor"),
        ("parent=3", "parent"),
        ("limit=1&limit=2", "limit"),
    ],
)
async def test_a_bad_query_is_named(service, query, words):
    _, problem = await service.problem(400, "invalid-request", "GET", f"/api/v1/tasks?{query}")
    assert words in problem["detail"]


async def test_read_and_cancel(service):
    task_id = (await service.json("POST", "/api/v1/tasks", SPEC, status=202))["id"]
    assert (await service.json("GET", f"/api/v1/tasks/{task_id}"))["state"] == "running"
    for _ in range(2):
        task = await service.json("DELETE", f"/api/v1/tasks/{task_id}", status=202)
        assert task["state"] == "cancelled"
    for method in ("GET", "DELETE"):
        await service.problem(404, "not-found", method, f"/api/v1/tasks/{UNKNOWN}")
        await service.problem(404, "not-found", method, "/api/v1/tasks/nonsense")


async def test_an_unreachable_origin_is_never_404(service, monkeypatch):
    async def unreachable(task_id, caller):
        raise OriginUnreachableError("node two does not answer")

    monkeypatch.setattr(service.backend, "task", unreachable)
    response, _ = await service.problem(503, "origin-unreachable", "GET", f"/api/v1/tasks/{UNKNOWN}")
    assert response.headers["Retry-After"]


async def test_the_role_read_sees_no_environment(service):
    options = ["-e", "A=1", "-eB=2", "--env=C=3", "--env", "D=4", "-ite", "E=5", "-e", "BARE", "-w", "/e"]
    spec = {
        **SPEC,
        "service": [*SPEC["service"], {"driver": "container", "image": "i", "options": options}],
    }
    task_id = (await service.json("POST", "/api/v1/tasks", spec, status=202))["id"]
    shown = (await service.json("GET", f"/api/v1/tasks/{task_id}", role="read"))["spec"]
    assert shown["service"][0]["env"] == {"KEY": "***"}
    assert shown["service"][1]["options"] == [
        *(
            "-e",
            "A=***",
            "-eB=***",
            "--env=C=***",
            "--env",
            "D=***",
            "-ite",
            "E=***",
            "-e",
            "BARE",
            "-w",
            "/e",
        )
    ]
    listed = (await service.json("GET", "/api/v1/tasks", role="read"))["tasks"][0]["spec"]
    assert listed == shown
    assert (await service.json("GET", f"/api/v1/tasks/{task_id}"))["spec"] == spec


# Output and events


@pytest.fixture
async def task_id(service):
    return (await service.json("POST", "/api/v1/tasks", SPEC, status=202))["id"]


async def test_raw_output(service, task_id):
    service.backend.printed = [
        Chunk(stream="stdout", offset=0, data=b"a\n\xff"),
        Chunk(stream="stderr", offset=0, data=b"e"),
    ]
    response, data = await service.ask("GET", f"/api/v1/tasks/{task_id}/output", role="read")
    assert response.status_code == 200
    assert data == b"a\n\xffe"
    assert "Edgeorch-Output" not in response.headers
    _, data = await service.ask("GET", f"/api/v1/tasks/{task_id}/output?stream=stderr")
    assert data == b"e"


async def test_tail_only_is_marked(service, task_id):
    service.backend.print(Chunk(stream="stdout", offset=9, data=b"end", tail=True), end="tail-only")
    response, data = await service.ask("GET", f"/api/v1/tasks/{task_id}/output")
    assert response.headers["Edgeorch-Output"] == "tail-only"
    assert data == b"end"


async def test_output_of_several_nodes_has_their_names(service, task_id):
    service.backend.print(
        Chunk(stream="stdout", offset=0, data=b"x1\nx", label="one"),
        Chunk(stream="stdout", offset=0, data=b"y1\n", label="two"),
        Chunk(stream="stdout", offset=4, data=b"2\nlast", label="one"),
        end="ended",
    )
    _, data = await service.ask("GET", f"/api/v1/tasks/{task_id}/output")
    assert data == b"one | x1\ntwo | y1\none | x2\none | last\n"


async def test_ndjson_output(service, task_id):
    service.backend.print(
        Chunk(stream="stdout", offset=0, data=b"a\n"),
        Chunk(stream="stderr", offset=5, data=b"\xff", label="one"),
        end="ended",
    )
    response, data = await service.ask("GET", f"/api/v1/tasks/{task_id}/output?format=ndjson")
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert [json.loads(line) for line in data.splitlines()] == [
        {"stream": "stdout", "offset": 0, "data": "a\n"},
        {"stream": "stderr", "offset": 5, "data_b64": "/w==", "label": "one"},
        {"end": "ended"},
    ]


async def test_an_error_before_the_output_is_a_problem(service):
    for query in ("", "?format=ndjson"):
        await service.problem(404, "not-found", "GET", f"/api/v1/tasks/{UNKNOWN}/output{query}")
        await service.problem(404, "not-found", "GET", f"/api/v1/tasks/{UNKNOWN}/events")


async def test_an_error_at_once_is_a_problem(service, task_id):
    service.backend.raises = NodeUnreachableError("node two is gone")
    await service.problem(503, "node-unreachable", "GET", f"/api/v1/tasks/{task_id}/output")


async def test_an_error_within_ndjson_is_its_last_line(service, task_id, autojump_clock):
    service.backend.print(Chunk(stream="stdout", offset=0, data=b"a"))
    service.backend.raises = NodeUnreachableError("node two is gone")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def end():
            await trio.sleep(5)
            service.backend.print(end="ended")

        _, data = await service.ask("GET", f"/api/v1/tasks/{task_id}/output?follow=true&format=ndjson")
    last = json.loads(data.splitlines()[-1])
    assert last["end"] == "error"
    assert last["problem"]["type"] == "/docs/problems#node-unreachable"


async def test_following_outlives_any_response_limit(service, task_id, autojump_clock):
    service.backend.end = None
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def end():
            await trio.sleep(3600)
            service.backend.print(Chunk(stream="stdout", offset=0, data=b"late"), end="ended")

        response, data = await service.ask("GET", f"/api/v1/tasks/{task_id}/output?follow=true")
    assert response.status_code == 200
    assert data == b"late"


@pytest.mark.parametrize(
    "query", ["tail=-1", "attempt=-1", "offset=-1", "stream=all", "format=xml", "tail=x"]
)
async def test_a_bad_output_query(service, task_id, query):
    await service.problem(400, "invalid-request", "GET", f"/api/v1/tasks/{task_id}/output?{query}")


async def test_events_of_a_task(service, task_id, autojump_clock):
    service.backend.tell(Event(task=task_id, at=WALL, type="state", data={"state": "running"}))
    service.backend.tell(Event(task="other", at=WALL, type="state", data={}))
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def end():
            await trio.sleep(events.KEEP_ALIVE_S * 1.5)
            service.backend.ended.add(task_id)
            service.backend.tell(Event(task=task_id, at=WALL, type="state", data={"state": "failed"}))

        response, data = await service.ask("GET", f"/api/v1/tasks/{task_id}/events")
    assert response.headers["Content-Type"] == "text/event-stream"
    parts = data.decode().split("\n\n")
    assert parts[0] == ": edgeorch"
    assert parts[1].startswith("id: 1\nevent: state\ndata: ")
    assert json.loads(parts[1].partition("data: ")[2]) == {
        "type": "state",
        "task": task_id,
        "at": "2023-11-14T22:13:20.000Z",
        "data": {"state": "running"},
    }
    assert parts[2] == ": keep-alive"
    assert parts[-2].startswith("id: 3\n")


async def test_events_go_on_after_the_last_id(service, task_id):
    for state in ("placing", "running"):
        service.backend.tell(Event(task=task_id, at=WALL, type="state", data={"state": state}))
    service.backend.ended.add(task_id)
    headers = {"Last-Event-ID": "1"}
    _, data = await service.ask("GET", f"/api/v1/tasks/{task_id}/events", headers=headers)
    assert b"id: 2\n" in data
    assert b"id: 1\n" not in data
    headers = {"Last-Event-ID": "2"}
    response, data = await service.ask("GET", f"/api/v1/tasks/{task_id}/events", headers=headers)
    assert response.status_code == 204
    assert data == b""
    for bad in ("x", "-1", "9" * 30):
        headers = {"Last-Event-ID": bad}
        await service.problem(400, "invalid-request", "GET", "/api/v1/events", headers=headers)


# Nodes and probes


async def test_nodes(service):
    nodes = (await service.json("GET", "/api/v1/nodes", role="read"))["nodes"]
    assert [(node["name"], node["self"]) for node in nodes] == [("one", True), ("two", False)]
    node = await service.json("GET", "/api/v1/nodes/self")
    assert node["id"] == OWN_ID
    assert node["state"] == "alive"
    assert (node["slots"], node["slots_used"], node["cert_days"]) == (4, 1, 30.0)
    assert node["score"]["reasons"] == ["idle"]
    assert (await service.json("GET", "/api/v1/nodes/two"))["name"] == "two"
    await service.problem(404, "not-found", "GET", "/api/v1/nodes/three")


async def test_change_nodes(service):
    for action, state in (("drain", "draining"), ("cordon", "cordoned"), ("resume", "alive")):
        assert (await service.json("POST", f"/api/v1/nodes/two/{action}"))["state"] == state
    await service.problem(409, "conflict", "DELETE", "/api/v1/nodes/two")
    await service.problem(404, "not-found", "POST", "/api/v1/nodes/two/explode")


async def test_probes(service):
    assert await service.json("GET", "/healthz", role=None) == {"status": "ok"}
    assert await service.json("GET", "/readyz", role=None) == {"status": "ready"}
    service.backend.wrong["store"] = "/secret/path is full"
    _, problem = await service.problem(503, "unavailable", "GET", "/readyz", role=None)
    assert problem["failing"] == ["store"]
    assert "secret" not in json.dumps(problem)
    _, data = await service.ask("GET", "/metrics", role="read")
    assert data == b"edgeorch_tasks 1\n"


async def test_metrics_are_rendered_a_few_times_a_second_at_most(autojump_clock):
    rendered = []
    routes = ProbeRoutes(
        MemoryBackend(), lambda: rendered.append(1) or b"edgeorch_tasks %d\n" % len(rendered)
    )
    asked = Asked(caller=Caller(token="t", role="read"), path={}, query=None, headers={})
    for seconds, text in ((0, b"1"), (0.2, b"1"), (0.1, b"2"), (0.1, b"2"), (60, b"3")):
        await trio.sleep(seconds)
        assert (await routes.metrics(asked)).body == b"edgeorch_tasks " + text + b"\n"


# Who may


@pytest.mark.parametrize(
    ("method", "path", "least"),
    [
        ("POST", "/api/v1/tasks", "submit"),
        ("GET", "/api/v1/tasks", "read"),
        ("GET", f"/api/v1/tasks/{UNKNOWN}", "read"),
        ("DELETE", f"/api/v1/tasks/{UNKNOWN}", "submit"),
        ("GET", f"/api/v1/tasks/{UNKNOWN}/output", "read"),
        ("GET", f"/api/v1/tasks/{UNKNOWN}/events", "read"),
        ("GET", "/api/v1/nodes", "read"),
        ("GET", "/api/v1/nodes/self", "read"),
        ("POST", "/api/v1/nodes/self/drain", "admin"),
        ("POST", "/api/v1/nodes/self/cordon", "admin"),
        ("POST", "/api/v1/nodes/self/resume", "admin"),
        ("DELETE", "/api/v1/nodes/two", "admin"),
        ("POST", "/api/v1/orchestration/services", "submit"),
        ("GET", "/metrics", "read"),
    ],
)
async def test_least_roles(service, method, path, least):
    response, _ = await service.problem(401, "unauthorized", method, path, role=None)
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    roles = ["read", "submit", "admin"]
    for role in roles:
        response, _ = await service.ask(method, path, role=role)
        allowed = roles.index(role) >= roles.index(least)
        assert (response.status_code == 403) == (not allowed), role


async def test_an_unknown_token(service):
    headers = {"Authorization": "Bearer nonsense"}
    await service.problem(401, "unauthorized", "GET", "/api/v1/nodes", headers=headers, role=None)


async def test_too_many_wrong_tokens(service):
    headers = {"Authorization": "Bearer nonsense"}
    for _ in range(30):
        await service.problem(401, "unauthorized", "GET", "/api/v1/nodes", headers=headers, role=None)
    response, _ = await service.problem(
        429, "too-many-requests", "GET", "/api/v1/nodes", headers=headers, role=None
    )
    assert int(response.headers["Retry-After"]) >= 1
    # Nobody is locked out by it.
    await service.json("GET", "/api/v1/nodes", role="read")


async def test_anonymous_callers_on_loopback(tmp_path):
    service = Service(tmp_path, anonymous_role="submit")
    local = {"role": None, "address": "127.0.0.1", "headers": {"Host": "localhost:56001"}}
    await service.json("POST", "/api/v1/tasks", SPEC, status=202, **local)
    await service.problem(403, "forbidden", "POST", "/api/v1/nodes/self/drain", **local)
    await service.problem(401, "unauthorized", "GET", "/api/v1/nodes", role=None, address="192.0.2.9")
    local["headers"] = {"Host": "rebound.example"}
    await service.problem(403, "forbidden", "GET", "/api/v1/nodes", **local)
    local["headers"] = {"Host": "localhost", "Origin": "https://evil.example"}
    await service.problem(403, "forbidden", "GET", "/api/v1/nodes", **local)
    local["headers"] = {"Host": "localhost", "Content-Type": "text/plain"}
    await service.problem(
        415, "unsupported-media-type", "POST", "/api/v1/orchestration/services", b"{}", **local
    )


async def test_requests_per_second(tmp_path, autojump_clock):
    service = Service(tmp_path, requests_per_second=2)
    for _ in range(2):
        await service.json("GET", "/api/v1/nodes")
    response, _ = await service.problem(429, "too-many-requests", "GET", "/api/v1/nodes")
    assert response.headers["Retry-After"]
    await service.json("GET", "/api/v1/nodes", role="read")
    await trio.sleep(0.6)
    await service.json("GET", "/api/v1/nodes")


async def test_unknown_routes_and_methods(service):
    for path in ("/nowhere", "/api/v1/tasks/", "/api/v2/tasks", "/static/x"):
        await service.problem(404, "not-found", "GET", path)
    response, _ = await service.problem(405, "method-not-allowed", "DELETE", "/api/v1/tasks")
    assert response.headers["Allow"] == "GET, HEAD, POST"


# The original API


async def original(service, **changes):
    body = {name: value for name, value in {**ORIGINAL, **changes}.items() if value is not None}
    return await service.json("POST", "/api/v1/orchestration/services", body, role="submit")


async def test_the_original_request(service):
    answer = await original(service)
    task_id = answer.pop("TaskId")
    assert answer == {
        "Message": "ERROR_NONE",
        "ServiceName": "hello-world",
        "RemoteTargetInfo": {"ExecutionType": "native", "Target": "192.0.2.1"},
        "ServiceID": 1,
    }
    spec = json.loads(service.backend.known[task_id].spec)
    assert spec == {
        "name": "hello-world",
        "service": [
            {
                "driver": "container",
                "image": "hello-world",
                "options": ["-v", "/var/run:/var/run:rw"],
                "args": [],
            }
        ],
        "placement": {"self": True},
        "callback_url": ORIGINAL["StatusCallbackURI"],
    }


async def test_the_content_type_of_the_original_request_does_not_matter(service):
    headers = {"Content-Type": "text/plain"}
    answer = await service.json("POST", "/api/v1/orchestration/services", ORIGINAL, headers=headers)
    assert answer["Message"] == "ERROR_NONE"


@pytest.mark.parametrize(
    ("given", "chosen"), [("true", True), ("false", False), (True, True), (False, False), ("x", False)]
)
async def test_self_selection(service, given, chosen):
    answer = await original(service, SelfSelection=given)
    assert json.loads(service.backend.known[answer["TaskId"]].spec)["placement"] == {"self": chosen}


async def test_alternatives_keep_their_order(service):
    native = {"ExecutionType": "native", "ExecCmd": ["ls", "-srt"]}
    android = {"ExecutionType": "android", "ExecCmd": ["com.example.app"]}
    answer = await original(
        service, ServiceInfo=[android, native, *ORIGINAL["ServiceInfo"]], ServiceRequester="app", Other=1
    )
    spec = json.loads(service.backend.known[answer["TaskId"]].spec)
    assert [one["driver"] for one in spec["service"]] == ["native", "container"]
    assert spec["metadata"] == {"ServiceRequester": "app"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ServiceName": None}, "INVALID_PARAMETER"),
        ({"ServiceName": 1}, "INVALID_PARAMETER"),
        ({"ServiceName": "x" * 200}, "INVALID_PARAMETER"),
        ({"ServiceRequester": 1}, "INVALID_PARAMETER"),
        ({"ServiceInfo": None}, "INVALID_PARAMETER"),
        ({"ServiceInfo": ["x"]}, "INVALID_PARAMETER"),
        ({"ServiceInfo": [{"ExecutionType": "native"}]}, "INVALID_PARAMETER"),
        ({"ServiceInfo": [{"ExecutionType": "native", "ExecCmd": []}]}, "INVALID_PARAMETER"),
        ({"ServiceInfo": [{"ExecutionType": "native", "ExecCmd": [1]}]}, "INVALID_PARAMETER"),
        ({"ServiceInfo": [{"ExecutionType": "android", "ExecCmd": ["a"]}]}, "INVALID_PARAMETER"),
        ({"ServiceInfo": [{"ExecutionType": "container", "ExecCmd": ["a"]}]}, "INVALID_PARAMETER"),
        (
            {"ServiceInfo": [{"ExecutionType": "container", "ExecCmd": ["docker", "run", "--nope", "i"]}]},
            "INVALID_PARAMETER",
        ),
        ({"ServiceInfo": []}, "not found error : No Device Is Return"),
    ],
)
async def test_what_the_original_calls_invalid(service, changes, message):
    answer = await original(service, **changes)
    assert answer["Message"] == message
    assert answer["Detail"]
    assert "TaskId" not in answer
    assert (answer["RemoteTargetInfo"] is None) == (message == "INVALID_PARAMETER")
    assert service.backend.submitted == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b'{"a": "\xff"}'])
async def test_no_json_object_is_a_problem_in_the_original_api_too(service, body):
    await service.problem(400, "invalid-request", "POST", "/api/v1/orchestration/services", body)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PolicyError("policy.images"), "NOT_ALLOWED_COMMAND"),
        (PolicyError("not listed", rule="service"), "not found registered service"),
        (PolicyError("another program", rule="program"), "not matched service with executable"),
        (PolicyError("not asked by curl", rule="requester"), "not allowed service execution"),
        (TooManyTasksError("policy.max_tasks"), "INTERNAL_SERVER_ERROR"),
        (InvalidRequestError("callback_url"), "INVALID_PARAMETER"),
        (NotFoundError("no node"), "not found error : No Device Is Return"),
        (UnavailableError("draining"), "INTERNAL_SERVER_ERROR"),
        (StorageError("full"), "INTERNAL_SERVER_ERROR"),
    ],
)
async def test_errors_as_the_originals_messages(service, error, message):
    service.backend.raises = error
    answer = await original(service)
    assert answer["Message"] == message
    assert error.detail in answer["Detail"]


async def test_a_service_that_no_node_takes_is_cancelled(service, autojump_clock):
    service.backend.accepts = False
    started = trio.current_time()
    answer = await original(service)
    assert trio.current_time() - started == pytest.approx(3.0)
    assert answer["Message"] == "SERVICE_NOT_FOUND"
    assert answer["RemoteTargetInfo"] == {"ExecutionType": "", "Target": ""}
    # Why it waited, not that it was cancelled: that may be another node's policy.
    assert answer["Detail"] == "no node has a free slot"
    assert service.backend.known[answer["TaskId"]].state is TaskState.CANCELLED


# Documents


async def test_openapi_and_pages(service):
    document = await service.json("GET", "/openapi.json", role=None)
    assert document["openapi"] == "3.1.0"
    assert "post" in document["paths"]["/api/v1/orchestration/services"]
    assert set(document["paths"]["/api/v1/nodes/{id}"]) == {"get", "delete"}
    text = json.dumps(document)
    for found in {part.split('"')[0] for part in text.split('"#/components/')[1:]}:
        kind, _, name = found.partition("/")
        assert name in document["components"][kind], found
    for path in ("/", "/docs", "/docs/problems", "/docs/docs.js", "/docs/style.css"):
        response, data = await service.ask("GET", path, role=None)
        assert response.status_code == 200
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
        assert b"http://" not in data
        assert b"https://" not in data


# The audit trail


def record(number, **more):
    facts = {
        "at": WALL + number,
        "token": "ann",
        "via": "",
        "action": "submit",
        "subject": f"t{number}",
    } | more
    return PutAudit(id=ulid(WALL + number, number, OWN_ID), **facts)


async def test_the_audit_trail(service):
    service.backend.records = [record(1, role="admin", address="192.0.2.7"), record(2, via="2222222222")]
    page = await service.json("GET", "/api/v1/audit")
    assert (page["cursor"], page["unreachable"]) == (None, ["two"])
    second, first = page["records"]
    assert first == {
        "id": service.backend.records[0].id,
        "at": "2023-11-14T22:13:21.000Z",
        "node": OWN_ID,
        "node_name": "one",
        "action": "submit",
        "subject": "t1",
        "detail": "",
        "count": 1,
        "token": "ann",
        "role": "admin",
        "address": "192.0.2.7",
        "via": "",
        "via_name": "",
    }
    assert (second["via"], second["via_name"]) == ("2222222222", "two")
    assert (await service.json("GET", "/api/v1/audit?local=true"))["unreachable"] == []


async def test_the_audit_trail_in_pages_and_from_a_time_on(service):
    service.backend.records = [record(number) for number in range(5)]
    page = await service.json("GET", "/api/v1/audit?limit=2")
    assert [one["subject"] for one in page["records"]] == ["t4", "t3"]
    page = await service.json("GET", f"/api/v1/audit?limit=2&cursor={page['cursor']}")
    assert [one["subject"] for one in page["records"]] == ["t2", "t1"]
    page = await service.json("GET", "/api/v1/audit?since=2023-11-14T22:13:23Z")
    assert [one["subject"] for one in page["records"]] == ["t4", "t3"]


@pytest.mark.parametrize("role", ["read", "submit"])
async def test_the_audit_trail_is_for_administrators(service, role):
    await service.problem(403, "forbidden", "GET", "/api/v1/audit", role=role)


@pytest.mark.parametrize(
    "query",
    [
        "since=yesterday",
        "since=2023-11-14T22:13:23",
        "since=2023-99-14T22:13:23Z",
        "since=0.5",
        "limit=0",
        "cursor=x",
        "nope=1",
    ],
)
async def test_a_bad_question_to_the_audit_trail(service, query):
    _, problem = await service.problem(400, "invalid-request", "GET", f"/api/v1/audit?{query}")
    assert query.partition("=")[0] in problem["detail"]


async def test_refused_logins_are_told_to_the_trail(tmp_path):
    service = Service(tmp_path)
    seen = []
    service.tokens.on_refused = lambda *about: seen.append(about)
    for _ in range(2):
        await service.problem(
            401, "unauthorized", "GET", "/api/v1/tasks", headers={"Authorization": "Bearer wrong"}, role=None
        )
    assert seen == [("192.0.2.9", "the token is unknown or revoked")] * 2


async def test_every_problem_type_is_described(service):
    _, data = await service.ask("GET", "/docs/problems", role=None)
    for slug in problem_types():
        assert f'id="{slug}"'.encode() in data


async def test_every_route_of_the_api_is_documented(service):
    document = await service.json("GET", "/openapi.json", role=None)
    for rule in service.app.url_map.iter_rules():
        if not rule.rule.startswith("/docs") and rule.rule != "/":
            path = rule.rule.replace("<", "{").replace(">", "}")
            for method in rule.methods - {"HEAD", "OPTIONS"}:
                assert method.lower() in document["paths"][path]
