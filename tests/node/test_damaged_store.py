"""A node whose database is damaged while it is down, or whose disk takes no more writes while it runs."""

import os
import shutil
import subprocess

import pytest
from real_fleet import RealFleet, eventually

TASKS = 30


@pytest.fixture
def node(tmp_path):
    fleet = RealFleet(tmp_path, "one")
    try:
        yield fleet.nodes["one"]
    finally:
        fleet.close()


def overwrite(path, place, size=4096):
    with path.open("r+b") as file:
        file.seek(place)
        file.write(os.urandom(size))


def damage_pages(state):
    """Every other page from the middle on."""
    database = state / "edgeorch.db"
    for page in range(database.stat().st_size // 8192, database.stat().st_size // 4096, 2):
        overwrite(database, page * 4096)


def damage_log(state):
    log = state / "edgeorch.db-wal"
    overwrite(log, log.stat().st_size // 2)


def lose_database(state):
    (state / "edgeorch.db").unlink()


@pytest.mark.parametrize("harm", [damage_pages, damage_log, lose_database])
def test_a_damaged_database_is_told_set_aside_and_the_node_works(node, harm):
    node.start()
    done = [node.ended(node.submit("true", metadata={"filling": "x" * 3000}))["id"] for _ in range(TASKS)]
    if harm is damage_pages:
        node.stop()  # which moves the log into the database
    else:
        node.kill()
    harm(node.folder / "state")
    node.start()
    assert "the database was damaged: it was set aside" in node.log()
    assert list((node.folder / "state").glob("edgeorch.db.corrupt-*"))
    known = {task["id"] for task in node.get("/api/v1/tasks?limit=100")["tasks"]}
    assert known < set(done), "nothing was lost, so nothing was damaged"
    assert known or harm is lose_database
    assert node.ended(node.submit("true"))["state"] == "succeeded"
    assert "Traceback" not in node.log()
    node.stop()
    node.start()
    assert {task["id"] for task in node.get("/api/v1/tasks?limit=100")["tasks"]} > known


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="makes a file system: install e2fsprogs")
def test_a_file_system_that_turns_read_only_loses_nothing(node, tmp_path):
    """What ext4 does after an error of its disk."""
    state, image = node.folder / "state", tmp_path / "image"
    state.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    if run("mount", "-o", "loop", str(image), str(state)):
        pytest.skip("no loop devices here")
    try:
        node.start()
        running = node.submit("sleep", "2")
        run("mount", "-o", "remount,abort", str(state))
        status, body = eventually(lambda: refusal(node), "the disk takes nothing more")
        assert status == 507, body
        assert b"read-only" in body or b"disk" in body
        assert node.request("GET", "/healthz")[0] == 200
        status, body = node.request("GET", "/readyz")
        assert status == 503
        assert b"store" in body
        node.kill_host()
        eventually(lambda: run("umount", str(state)) == 0, "nobody uses the file system any more")
        run("fsck.ext4", "-fy", str(image))
        assert run("mount", "-o", "loop", str(image), str(state)) == 0
        node.start()
        assert node.get(f"/api/v1/tasks/{running['id']}")["id"] == running["id"]
        assert node.ended(node.submit("true"))["state"] == "succeeded"
    finally:
        node.stop()
        node.kill_runner()
        run("umount", "--lazy", str(state))


def run(*argv):
    return subprocess.run(argv, check=False, capture_output=True).returncode


def refusal(node):
    spec = {"name": "more", "service": [{"driver": "native", "argv": ["true"]}]}
    status, body = node.request("POST", "/api/v1/tasks", spec)
    return (status, body) if status != 202 else None
