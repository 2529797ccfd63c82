"""A node whose state folder is put back from a backup."""

import shutil

import pytest
from real_fleet import RealFleet, eventually

PATIENT = "[lease]\nlease_s=300\n"


@pytest.fixture
def fleet(tmp_path):
    fleet = RealFleet(tmp_path, "kitchen", "garage")
    try:
        yield fleet
    finally:
        fleet.close()


def test_what_ended_after_the_backup_is_not_run_again(fleet, tmp_path):
    kitchen, garage = (node.start(PATIENT) for node in fleet.nodes.values())
    fleet.wait_seen(kitchen, "garage")
    ledger, go = tmp_path / "ledger", tmp_path / "go"
    script = 'echo "$EDGEORCH_TASK_ID" >>"$0"; until [ -e "$1" ]; do sleep 0.1; done; echo done'
    where = {"constraints": ["name == garage"]}
    tasks = [
        kitchen.submit("sh", "-c", script, str(ledger), str(go), placement=where, retry=retry)
        for retry in ({"max_attempts": 1}, {"max_attempts": 3, "on": ["node_lost", "rejected", "failed"]})
    ]
    eventually(lambda: ledger.exists() and len(ledger.read_text().split()) == 2, "both run on garage")
    backup, state = tmp_path / "backup", kitchen.folder / "state"
    kitchen.kill()
    shutil.copytree(state, backup)
    # Lives go on after the backup, so that the restored node counts fewer of them than others have seen.
    for _ in range(2):
        kitchen.start(PATIENT)
        fleet.wait_seen(garage, "kitchen")
        kitchen.kill()
    kitchen.start(PATIENT)
    go.touch()
    for task in tasks:
        assert kitchen.ended(task)["state"] == "succeeded"
    accepted_later = kitchen.ended(kitchen.submit("true"))
    kitchen.kill_host()
    shutil.rmtree(state)
    shutil.copytree(backup, state)
    kitchen.start(PATIENT)
    for task in tasks:
        found = kitchen.ended(task)
        assert found["state"] == "succeeded"
        assert [(one["number"], one["state"]) for one in found["attempts"]] == [(1, "succeeded")]
    assert sorted(ledger.read_text().split()) == sorted(task["id"] for task in tasks)
    fleet.wait_seen(kitchen, "garage")
    fleet.wait_seen(garage, "kitchen")
    # What came after the backup is lost with it; the README says so.
    assert kitchen.request("GET", f"/api/v1/tasks/{accepted_later['id']}")[0] == 404
    assert kitchen.ended(garage.submit("true", placement={"node": "kitchen"}))["state"] == "succeeded"
