"""A real node whose clock is wrong: it starts, says so, is refused for its clock, and recovers by itself."""

import json
import sys

import pytest
from real_fleet import RealFleet, eventually

DAY = 86_400

WRONG_CLOCK = """
import sys, time
real, path = time.time, sys.argv[1]
def wrong():
    with open(path) as file:
        return real() + float(file.read())
time.time = wrong
from edgeorch.cli import main
sys.exit(main(["node", "--config", sys.argv[2]]))
"""


@pytest.fixture
def fleet(tmp_path):
    made = RealFleet(tmp_path, "kitchen", "garage")
    yield made
    made.close()


@pytest.mark.parametrize("days", [-30, 800])
def test_a_wrong_clock_is_told_and_healed_without_a_restart(fleet, days):
    kitchen, garage = fleet.nodes.values()
    shift = garage.folder / "shift"
    shift.write_text(str(days * DAY))
    garage.command = lambda: [
        sys.executable, "-c", WRONG_CLOCK, str(shift), str(garage.folder / "edgeorch.toml")
    ]  # fmt: skip
    if days > 0:
        # Where a time service keeps the clock, the node would believe it and end: its certificate is over.
        node_id = (garage.folder / "node_id").read_text().strip()
        fleet.authority.issue("garage", [garage.host], node_id=node_id, days=days + 100).write(garage.folder)
    kitchen.start()
    garage.start()
    if days < 0:
        assert "this machine's clock is wrong" in garage.log()
        assert garage.request("GET", "/readyz")[0] == 503
    for node in (kitchen, garage):
        eventually(lambda node=node: "clock" in reasons(node), f"{node.name} says that it is the clock")
        assert not reasons(node) & {"expired", "wrong_ca", "invalid", "not_yet_valid"}
    assert garage.sees() == {"garage": "alive"}
    shift.write_text("0")
    for node in (kitchen, garage):
        fleet.wait_seen(node, "kitchen", "garage")
    assert garage.request("GET", "/readyz")[0] == 200


def reasons(node):
    """Reason words of its log."""
    return {word.partition("=")[2] for word in node.log().split() if word.startswith("reason=")}


@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_set_over_a_restart_ends_nothing_early_and_forgets_nothing(fleet, days):
    kitchen = fleet.nodes["kitchen"]
    shift = kitchen.folder / "shift"
    shift.write_text("0")
    kitchen.command = lambda: [
        sys.executable, "-c", WRONG_CLOCK, str(shift), str(kitchen.folder / "edgeorch.toml")
    ]  # fmt: skip
    kitchen.start()
    stays = kitchen.submit("sleep", "600", timeout_s=3600, deadline_s=7200)
    eventually(lambda: kitchen.get(f"/api/v1/tasks/{stays['id']}")["state"] == "running", "it runs")
    first, number = once(kitchen, "k"), service_id(kitchen)
    kitchen.kill()
    shift.write_text(str(days * DAY))
    kitchen.start()
    found = kitchen.get(f"/api/v1/tasks/{stays['id']}")
    assert (found["state"], len(found["attempts"])) == ("running", 1)
    assert once(kitchen, "k") == first
    assert once(kitchen, "later") > first, "ids grow, so lists keep the order of acceptance"
    assert service_id(kitchen) > number
    status, _ = kitchen.request("DELETE", f"/api/v1/tasks/{stays['id']}")
    assert status == 202
    assert kitchen.ended(stays)["state"] == "cancelled"


def once(node, key):
    """Id of the task that answers for this Idempotency-Key."""
    spec = {"name": "once", "service": [{"driver": "native", "argv": ["true"]}]}
    status, body = node.request("POST", "/api/v1/tasks", spec, **{"Idempotency-Key": key})
    assert status == 202, body
    return json.loads(body)["id"]


def service_id(node):
    """The ServiceID of one more request by the original API."""
    body = {"ServiceName": "s", "ServiceInfo": [{"ExecutionType": "native", "ExecCmd": ["true"]}]}
    status, answer = node.request("POST", "/api/v1/orchestration/services", body)
    found = json.loads(answer)
    assert (status, found["Message"]) == (200, "ERROR_NONE")
    return found["ServiceID"]
