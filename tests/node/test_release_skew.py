"""This release and the next one on the same disk, behind the same runner and in the same fleet."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from next_release import NEXT, STEP, environment, next_release
from real_fleet import RealFleet, eventually

from edgeorch import __version__


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    return environment(next_release(tmp_path_factory.mktemp("releases") / "next"))


@pytest.fixture
def fleet(tmp_path):
    made = RealFleet(tmp_path, "kitchen", "garage")
    yield made
    made.close()


@pytest.fixture
def own_runner(fleet):
    """A runner of this release that outlives the daemons, as with systemd; the setting that names it."""
    folder = fleet.nodes["kitchen"].folder
    socket, work_dir = folder / "runner.sock", folder / "state" / "tasks"
    command = [sys.executable, "-m", "edgeorch.runner", "--socket", socket, "--work-dir", work_dir]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as runner:
        assert runner.stdout.readline() == b"listening\n"
        yield {"EDGEORCH_RUNNER_SOCKET": str(socket)}
        runner.terminate()


def version(node, name="self"):
    return node.get(f"/api/v1/nodes/{name}")["version"]


def running(node, *argv, **fields):
    task = node.submit(*argv, **fields)
    eventually(lambda: node.get(f"/api/v1/tasks/{task['id']}")["state"] == "running", "it runs")
    return task


def seen_step(node):
    with closing(sqlite3.connect(node.folder / "state" / "edgeorch.db")) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


def test_an_upgrade_and_its_rollback_lose_no_task_and_end_no_service(fleet, own_runner, newer):
    node = fleet.nodes["kitchen"].start(env=own_runner)
    gates = [fleet.folder / "first", fleet.folder / "second"]
    for gate in gates:
        os.mkfifo(gate)
    before = running(node, "cat", str(gates[0]))
    waiting = node.submit("true", placement={"constraints": ["labels.gpu == yes"]})
    done = node.ended(node.submit("echo", "old"))

    node.stop()
    node.start(env=newer | own_runner)
    assert (version(node), seen_step(node)) == (NEXT, STEP)
    during = running(node, "cat", str(gates[1]))
    made_by_next = node.ended(node.submit("echo", "new"))

    node.stop()
    node.start('[node.labels]\ngpu = "yes"\n', env=own_runner)
    assert (version(node), seen_step(node)) == (__version__, STEP)
    for known in (done, made_by_next):
        assert node.get(f"/api/v1/tasks/{known['id']}") == known
    assert node.request("GET", f"/api/v1/tasks/{made_by_next['id']}/output") == (200, b"new\n")
    assert node.ended(waiting)["state"] == "succeeded"
    for task, gate in zip((before, during), gates, strict=True):
        gate.write_text("go on")
        ended = node.ended(task)
        assert (ended["state"], len(ended["attempts"])) == ("succeeded", 1)
        assert node.request("GET", f"{path(task)}/output") == (200, b"go on")

    node.stop()
    node.start(env=newer | own_runner)
    listed = {task["id"]: task["state"] for task in node.get("/api/v1/tasks")["tasks"]}
    assert listed == {task["id"]: "succeeded" for task in (before, waiting, done, during, made_by_next)}


def path(task):
    return f"/api/v1/tasks/{task['id']}"


def test_a_database_that_this_release_cannot_follow_is_refused_in_one_sentence(fleet, tmp_path):
    node = fleet.nodes["kitchen"].start()
    task = node.ended(node.submit("true"))
    node.stop()
    node.start(env=environment(next_release(tmp_path / "next", compatible=STEP)))
    node.stop()
    refused = subprocess.run(node.command(), capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    said = [line for line in refused.stderr.splitlines() if line.startswith("edgeorch: ")]
    assert said == [
        f"edgeorch: the database was written by a newer release (schema {STEP}, ours is {STEP - 1})"
    ]
    assert "Traceback" not in refused.stderr
    node.start(env=environment(tmp_path / "next"))
    assert node.get(path(task))["state"] == "succeeded"


def test_both_releases_in_one_fleet(fleet, newer):
    kitchen = fleet.nodes["kitchen"].start()
    garage = fleet.nodes["garage"].start(env=newer)
    for one, other in ((kitchen, garage), (garage, kitchen)):
        fleet.wait_seen(one, other.name)
        assert (version(one, "kitchen"), version(one, "garage")) == (__version__, NEXT)
        task = one.submit("sh", "-c", "echo out; exit 3", placement={"node": other.name})
        for asked in (one, other):
            ended = asked.ended(task)
            assert (ended["state"], ended["exit_code"]) == ("failed", 3)
            assert asked.request("GET", f"{path(task)}/output") == (200, b"out\n")
        stopped = running(one, "sleep", "1000", placement={"node": other.name})
        assert other.request("DELETE", path(stopped))[0] == 202
        assert one.ended(stopped)["state"] == "cancelled"
    every = kitchen.submit("true", placement={"mode": "all"})
    assert garage.ended(every)["state"] == "succeeded"
    assert len(garage.get("/api/v1/tasks")["tasks"]) == len(kitchen.get("/api/v1/tasks")["tasks"])
    # The newer one asks what the older one does not know; their link bears it.
    assert "does not know its mood" in garage.log()
    assert kitchen.sees() == garage.sees() == {"kitchen": "alive", "garage": "alive"}


def test_versions_are_shown_per_node(fleet, newer):
    kitchen = fleet.nodes["kitchen"].start()
    fleet.nodes["garage"].start(env=newer)
    fleet.wait_seen(kitchen, "garage")
    command = [*kitchen.command()[:3], "nodes", "--url", f"http://{kitchen.host}:{fleet.api}"]
    # Not the settings of whoever runs the tests.
    env = {**os.environ, "XDG_CONFIG_HOME": str(kitchen.folder)}
    table = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env).stdout
    head, *lines = (line.split() for line in table.splitlines())
    assert {line[0].strip("*"): line[head.index("VERSION") - len(head)] for line in lines}
    command += ["--json"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env)
    assert {node["name"]: node["version"] for node in json.loads(shown.stdout)} == {
        "kitchen": __version__,
        "garage": NEXT,
    }
    assert "VERSION" in head
