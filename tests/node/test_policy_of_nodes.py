"""The policy of real nodes: both sides, the limits of real processes, and SIGHUP."""

import contextlib
import json
from datetime import UTC, datetime

import pytest
from real_fleet import RealFleet, eventually

from edgeorch.rest.tokens import Token, hash_of, new_text, write_tokens

CONF = "[ServiceInfo]\nServiceName=clock\nExecutableFileName=date\nAllowedRequester=curl, {}\n"


@pytest.fixture
def fleet(tmp_path):
    made = RealFleet(tmp_path, "kitchen", "cellar")
    with contextlib.closing(made):
        yield made


def reload(node, extra):
    node.write_config(extra)
    before = node.log().count("reloaded")
    node.reload()
    eventually(lambda: node.log().count("reloaded") > before, f"{node.name} reloads")


def output(node, task):
    return node.request("GET", f"/api/v1/tasks/{task['id']}/output?stream=stdout")[1].decode().strip()


def original(node, command, requester="", token="", name="clock", selection="true"):
    """Ask by the original API."""
    body = {"ServiceName": name, "ServiceInfo": [{"ExecutionType": "native", "ExecCmd": command}]}
    body |= {"ServiceRequester": requester} if requester else {}
    body["SelfSelection"] = selection
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    status, data = node.request("POST", "/api/v1/orchestration/services", body, **headers)
    assert status == 200
    return json.loads(data)


def test_the_originals_registry_decides_what_runs_and_who_asks(fleet, tmp_path):
    kitchen = fleet.nodes["kitchen"]
    fleet.nodes = {"kitchen": kitchen}
    apps = tmp_path / "apps"
    (apps / "clock").mkdir(parents=True)
    (apps / "clock" / "clock.conf").write_text(CONF.format("thermostat"))
    text, other = new_text(), new_text()
    made = datetime(2026, 1, 1, tzinfo=UTC)
    tokens = [
        Token(name=name, role="submit", sha256=hash_of(secret), created=made)
        for name, secret in (("thermostat", text), ("laptop", other))
    ]
    file = kitchen.folder / "tokens.toml"
    file.touch(mode=0o600)
    file.write_bytes(write_tokens(tokens))
    settings = f'apps="{apps}"\n'
    kitchen.start(settings, env={"EDGEORCH_POLICY_NATIVE": "listed"})

    answer = original(kitchen, ["date", "-u"], token=text)
    assert answer["Message"] == "ERROR_NONE", answer
    assert kitchen.ended({"id": answer["TaskId"]})["state"] == "succeeded"
    for how, message in (
        ({"command": ["date"], "token": other}, "not allowed service execution"),
        ({"command": ["date"], "token": other, "requester": "curl"}, "not allowed service execution"),
        ({"command": ["sh"], "token": text}, "not matched service with executable"),
        ({"command": ["/tmp/date"], "token": text}, "not matched service with executable"),
        ({"command": ["date"], "token": text, "name": "bells"}, "not found registered service"),
    ):
        answer = original(kitchen, **how)
        assert answer["Message"] == message
        assert answer["Detail"].startswith("policy.native is listed for the role 'submit', and ")
        assert answer["RemoteTargetInfo"] == {"ExecutionType": "", "Target": ""}

    body = {"ServiceName": "clock", "StatusCallbackURI": "http://169.254.169.254/latest"}
    body["ServiceInfo"] = [{"ExecutionType": "native", "ExecCmd": ["date"]}]
    status, data = kitchen.request(
        "POST", "/api/v1/orchestration/services", body, Authorization=f"Bearer {text}"
    )
    assert (status, json.loads(data)["Message"]) == (200, "NOT_ALLOWED_COMMAND")
    assert json.loads(data)["Detail"].startswith("policy.callbacks does not list ")

    # By reload: the request's own word, and what the file says now.
    reload(kitchen, settings + 'requester="claimed"\n')
    assert original(kitchen, ["date"], token=other, requester="curl")["Message"] == "ERROR_NONE"
    (apps / "clock" / "clock.conf").write_text(CONF.format("laptop"))
    reload(kitchen, settings)
    assert original(kitchen, ["date"], token=other)["Message"] == "ERROR_NONE"
    assert original(kitchen, ["date"], token=text)["Message"] == "not allowed service execution"


def test_limits_hold_on_both_sides_and_for_real_processes(fleet):
    kitchen, cellar = fleet.start()
    reload(cellar, "max_memory=67108864\nmax_cpus=0.5\nmax_timeout_s=2\n")
    there = {"placement": {"node": "cellar"}}

    # What asks for nothing gets the limits; the kernel says so.
    if "rlimit:memory" in cellar.get("/api/v1/nodes/self")["limits"]:
        # It comes a moment after the start.
        wait = "until [ $(ulimit -d) != unlimited ]; do sleep 0.01; done; ulimit -d"
        task = kitchen.ended(kitchen.submit("sh", "-c", wait, **there))
        assert (task["state"], output(kitchen, task)) == ("succeeded", str(67108864 // 1024))
    task = kitchen.ended(kitchen.submit("sleep", "60", **there))
    assert (task["state"], task["reason"]) == ("timed_out", "ran longer than policy.max_timeout_s = 2")

    # What asks for more is refused at the door, and by the target whatever the origin thinks.
    spec = {
        "name": "x",
        "service": [{"driver": "native", "argv": ["true"]}],
        "resources": {"cpus": 1},
    } | there
    status, body = cellar.request("POST", "/api/v1/tasks", spec)
    problem = json.loads(body)
    assert (status, problem["type"], problem["key"]) == (403, "/docs/problems#policy", "policy.max_cpus")
    assert problem["hint"] == "ask for less, or raise policy.max_cpus in edgeorch.toml on cellar"
    task = kitchen.submit("true", resources={"cpus": 1}, **there)
    path = f"/api/v1/tasks/{task['id']}"
    eventually(lambda: "policy.max_cpus" in kitchen.get(path)["reason"], "it waits and says why")
    assert kitchen.get(path)["attempts"][0]["state"] == "refused"
    answer = kitchen.request("DELETE", path)
    assert answer[0] == 202
    assert kitchen.ended(task)["state"] == "cancelled"


def test_open_tasks_are_limited_and_waiting_helps(fleet):
    kitchen = fleet.nodes["kitchen"]
    fleet.nodes = {"kitchen": kitchen}
    kitchen.start("max_tasks=2\n")
    first = kitchen.submit("sleep", "100")
    kitchen.submit("sleep", "100")
    spec = {"name": "x", "service": [{"driver": "native", "argv": ["true"]}]}
    with contextlib.closing(kitchen.connection()) as connection:
        connection.request("POST", "/api/v1/tasks", json.dumps(spec), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        problem = json.loads(answer.read())
    assert (answer.status, problem["type"]) == (429, "/docs/problems#too-many-tasks")
    assert int(answer.headers["Retry-After"]) == problem["retry_after_s"] > 0
    assert "policy.max_tasks is 2" in problem["detail"]
    status, body = kitchen.request("POST", "/api/v1/tasks", [spec] * 3)
    assert (status, json.loads(body)["key"]) == (403, "policy.max_tasks")
    kitchen.request("DELETE", f"/api/v1/tasks/{first['id']}")
    kitchen.ended(first)
    assert kitchen.ended(kitchen.submit("true"))["state"] == "succeeded"
    reload(kitchen, "max_tasks=0\n")
    status, _ = kitchen.request("POST", "/api/v1/tasks", [spec] * 5)
    assert status == 202


def test_a_reload_that_cannot_be_used_leaves_the_policy_in_force(fleet):
    kitchen = fleet.nodes["kitchen"]
    fleet.nodes = {"kitchen": kitchen}
    kitchen.start('images=["ghcr.io/acme/*"]\n')
    spec = {"name": "x", "service": [{"driver": "container", "image": "alpine"}]}
    assert kitchen.request("POST", "/api/v1/tasks", spec)[0] == 403
    reload(kitchen, 'images=["not an image"]\n')
    assert "policy.images: 'not an image'" in kitchen.log()
    status, body = kitchen.request("POST", "/api/v1/tasks", spec)
    assert (status, json.loads(body)["key"]) == (403, "policy.images")
    reload(kitchen, 'images=["alpine"]\n')
    assert kitchen.request("POST", "/api/v1/tasks?dry_run=true", spec)[0] == 200


def test_the_original_api_tells_what_another_nodes_policy_says(fleet):
    kitchen, cellar = fleet.nodes["kitchen"], fleet.nodes["cellar"]
    kitchen.start()
    cellar.start(env={"EDGEORCH_POLICY_NATIVE": "off"})
    fleet.wait_seen(kitchen, "cellar")
    answer = original(kitchen, ["date"], selection="false")
    assert answer["Message"] == "SERVICE_NOT_FOUND", answer
    assert "policy.native is off for the role 'admin'" in answer["Detail"]
    assert kitchen.ended({"id": answer["TaskId"]})["state"] == "cancelled"
