"""Three real node processes: what the fleet promises, seen from outside."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real_fleet import RealFleet, eventually, runners

ORIGINAL = {
    "ServiceName": "hello",
    "ServiceInfo": [{"ExecutionType": "native", "ExecCmd": ["echo", "hello"]}],
}


@pytest.fixture
def fleet(tmp_path):
    made = RealFleet(tmp_path, "kitchen", "garage", "attic")
    yield made
    made.close()


def test_any_node_runs_what_is_posted_and_answers_for_it(fleet):
    nodes = fleet.start()
    for node in nodes:
        task = node.submit("sh", "-c", "echo out; echo err >&2; exit 3")
        for other in nodes:
            found = other.ended(task)
            assert (found["state"], found["exit_code"]) == ("failed", 3)
            assert other.request("GET", f"/api/v1/tasks/{task['id']}/output?stream=stdout") == (200, b"out\n")
            assert other.request("GET", f"/api/v1/tasks/{task['id']}/output?stream=stderr") == (200, b"err\n")
    listed = nodes[2].get("/api/v1/tasks")
    assert (len(listed["tasks"]), listed["unreachable"]) == (3, [])


def test_the_original_request_is_answered_field_for_field(fleet):
    node, *_ = fleet.start()
    status, body = node.request("POST", "/api/v1/orchestration/services", ORIGINAL)
    answer = json.loads(body)
    assert status == 200
    assert answer["Message"] == "ERROR_NONE"
    assert answer["ServiceName"] == "hello"
    assert answer["RemoteTargetInfo"]["ExecutionType"] == "native"
    assert answer["RemoteTargetInfo"]["Target"] in [one.host for one in fleet.nodes.values()]
    assert node.ended({"id": answer["TaskId"]})["state"] == "succeeded"


def test_a_request_to_a_bad_node_lands_on_the_best(fleet):
    kitchen, garage = fleet.nodes["kitchen"], fleet.nodes["garage"]
    kitchen.start("[scoring]\nweight = 0.01\n")
    garage.start("[scoring]\nweight = 100.0\n")
    fleet.wait_seen(kitchen, "garage")
    eventually(lambda: kitchen.get("/api/v1/nodes/garage")["score"]["value"] > 1, "garage has a score")
    task = kitchen.ended(kitchen.submit("true"))
    assert [attempt["node_name"] for attempt in task["attempts"]] == ["garage"]
    ranking = json.loads(
        kitchen.request(
            "POST",
            "/api/v1/tasks?dry_run=true",
            {"name": "x", "service": [{"driver": "native", "argv": ["true"]}]},
        )[1]
    )["ranking"]
    assert [line["node_name"] for line in ranking] == ["garage", "kitchen"]
    assert all(line["score"]["reasons"] for line in ranking)


def test_a_task_waits_for_a_node_that_fits(fleet):
    (kitchen,) = fleet.start("kitchen")
    task = kitchen.submit("true", placement={"constraints": ["labels.gpu == yes"]})
    assert task["state"] == "waiting"
    assert "labels.gpu == yes" in task["reason"]
    fleet.nodes["attic"].start('[node.labels]\ngpu = "yes"\n')
    done = kitchen.ended(task)
    assert done["attempts"][0]["node_name"] == "attic"


def test_a_killed_target_is_replaced(fleet):
    kitchen, *_ = fleet.start()
    task = kitchen.submit(
        "sh", "-c", "sleep 2", placement={"self": False}, retry={"max_attempts": 3, "backoff_s": 0.1}
    )
    running = eventually(
        lambda: (found := kitchen.get(f"/api/v1/tasks/{task['id']}"))["state"] == "running" and found,
        "the task runs",
    )
    target = fleet.nodes[running["attempts"][-1]["node_name"]]
    target.kill_host()
    fleet.wait_seen(kitchen, target.name, state="dead")
    done = kitchen.ended(task)
    assert done["state"] == "succeeded"
    assert done["attempts"][0]["state"] == "lost"
    assert done["attempts"][-1]["node_name"] != target.name


def test_a_killed_origin_comes_back_with_every_task(fleet):
    kitchen, garage = fleet.start("kitchen", "garage")
    ledger = fleet.folder / "ledger"
    tasks = [
        kitchen.submit(
            "sh",
            "-c",
            f"echo run >> {ledger}; sleep 1",
            placement={"node": name},
            retry={"max_attempts": 1},
        )
        for name in ("kitchen", "garage") * 2
    ]
    eventually(lambda: ledger.exists() and len(ledger.read_text().split()) == 4, "all run")
    kitchen.kill()
    assert garage.request("GET", f"/api/v1/tasks/{tasks[0]['id']}")[0] == 503
    kitchen.start()
    for task in tasks:
        assert kitchen.ended(task)["state"] == "succeeded"
    assert len(ledger.read_text().split()) == 4


def test_a_killed_target_daemon_comes_back_to_its_attempt(fleet):
    kitchen, garage = fleet.start("kitchen", "garage")
    task = kitchen.submit(
        "sh", "-c", "sleep 3; echo done", placement={"node": "garage"}, retry={"max_attempts": 1}
    )
    eventually(lambda: kitchen.get(f"/api/v1/tasks/{task['id']}")["state"] == "running", "it runs")
    garage.kill()
    garage.start()
    done = kitchen.ended(task)
    assert (done["state"], len(done["attempts"])) == ("succeeded", 1)
    assert kitchen.request("GET", f"/api/v1/tasks/{task['id']}/output") == (200, b"done\n")


def test_stopped_nodes_are_gone_at_once_and_dead_ones_soon(fleet):
    kitchen, garage, attic = fleet.start()
    assert garage.stop() == 0
    assert kitchen.sees()["garage"] == "left"
    attic.process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    fleet.wait_seen(kitchen, "attic", state="dead")
    assert time.monotonic() - start < PATIENCE_DEAD_S
    attic.process.send_signal(signal.SIGCONT)
    fleet.wait_seen(kitchen, "attic")
    garage.start()
    fleet.wait_seen(kitchen, "garage")
    assert list(runners(garage.folder))


PATIENCE_DEAD_S = 15.0
"""Three times what is promised on an idle machine: this one may be busy."""


def test_cancel_ends_the_whole_tree(fleet):
    kitchen, _ = fleet.start("kitchen", "garage")
    task = kitchen.submit("sh", "-c", "setsid sleep 1000 & echo $!; wait", placement={"node": "garage"})
    path = f"/api/v1/tasks/{task['id']}"
    pid = int(
        eventually(
            lambda: (text := kitchen.request("GET", f"{path}/output")[1]) and b"\n" in text and text, "a pid"
        )
    )
    assert kitchen.request("DELETE", path)[0] == 202
    assert kitchen.ended(task)["state"] == "cancelled"
    eventually(lambda: not alive(pid), "the grandchild is gone")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_spread_runs_on_distinct_nodes_and_labels_its_output(fleet):
    kitchen, *_ = fleet.start()
    parent = kitchen.submit("sh", "-c", "echo from $EDGEORCH_NODE", placement={"mode": "all"})
    assert kitchen.ended(parent)["state"] == "succeeded"
    text = kitchen.request("GET", f"/api/v1/tasks/{parent['id']}/output")[1].decode()
    assert sorted(line.partition("from ")[2] for line in text.splitlines()) == ["attic", "garage", "kitchen"]


def test_drain_from_any_node(fleet):
    kitchen, garage = fleet.start("kitchen", "garage")
    assert kitchen.request("POST", "/api/v1/nodes/garage/drain")[0] == 200
    eventually(lambda: "draining" in json.dumps(kitchen.get("/api/v1/nodes/garage")), "kitchen knows")
    task = kitchen.ended(kitchen.submit("true"))
    assert task["attempts"][-1]["node_name"] == "kitchen"
    garage.stop()
    garage.start()
    assert "draining" in json.dumps(garage.get("/api/v1/nodes/self"))
    assert kitchen.request("POST", "/api/v1/nodes/garage/resume")[0] == 200


def test_a_second_node_on_the_same_folder_or_port_says_so(fleet):
    (kitchen,) = fleet.start("kitchen")
    second = subprocess.run(
        [sys.executable, "-m", "edgeorch", "node", "--config", kitchen.folder / "edgeorch.toml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode not in (0, None)
    assert "Traceback" not in second.stderr
    assert kitchen.request("GET", "/healthz")[0] == 200
