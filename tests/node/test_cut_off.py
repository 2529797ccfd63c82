"""A target that its origin no longer hears: what its attempt does, and how often the task says it ran."""

import os
import signal

import pytest
from real_fleet import RealFleet, eventually

LEASE_S = 3
SOON = f"[lease]\nlease_s={LEASE_S}\nrenew_s=1\nlost_after_s=4\n"
BEATS = """
echo "$EDGEORCH_ATTEMPT $EDGEORCH_NODE start" >>"$0"
for beat in $(seq "$1"); do sleep 0.2; echo "$EDGEORCH_ATTEMPT $EDGEORCH_NODE on" >>"$0"; done
echo "$EDGEORCH_ATTEMPT $EDGEORCH_NODE end" >>"$0"
"""


@pytest.fixture
def fleet(tmp_path):
    fleet = RealFleet(tmp_path, "kitchen", "garage")
    try:
        yield fleet
    finally:
        fleet.close()


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "ledger"


def up(fleet):
    """Kitchen asks, garage works."""
    kitchen, garage = fleet.nodes.values()
    kitchen.start(SOON)
    garage.start(SOON)
    fleet.wait_seen(garage, "kitchen")
    fleet.wait_seen(kitchen, "garage")
    return kitchen, garage


def lines(ledger):
    return ledger.read_text().splitlines() if ledger.exists() else []


def on_garage(kitchen, ledger, beats, **fields):
    """A task that runs there now."""
    retry = {"max_attempts": fields.pop("max_attempts"), "on": ["node_lost"]}
    task = kitchen.submit(
        *("sh", "-c", BEATS, str(ledger), str(beats)),
        placement={"constraints": ["name == garage"]},
        retry=retry,
        **fields,
    )
    eventually(lambda: "1 garage on" in lines(ledger), "it runs on garage")
    return task


def freeze(node, number):
    os.kill(node.process.pid, number)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_stop_ends_the_attempt_on_its_own_side_without_the_daemon(fleet, ledger, how):
    kitchen, garage = up(fleet)
    task = on_garage(kitchen, ledger, 1000, max_attempts=2)
    if how == "killed":
        garage.kill()
    else:
        freeze(garage, signal.SIGSTOP)
    state = f"/api/v1/tasks/{task['id']}"
    eventually(lambda: kitchen.get(state)["attempts"][0]["state"] == "lost", "kitchen gives the attempt up")
    # Only then may another one start; the runner has ended the first one before.
    ended = len(lines(ledger))
    assert kitchen.get(state)["state"] == "waiting"
    eventually(lambda: kitchen.get(state)["reason"], "it says what it waits for")
    assert len(lines(ledger)) == ended
    assert "1 garage end" not in lines(ledger)
    kitchen.request("DELETE", state)
    if how == "stopped":
        freeze(garage, signal.SIGCONT)


def test_an_offer_that_a_frozen_node_finds_when_it_goes_on_is_too_old(fleet, ledger):
    kitchen, garage = up(fleet)
    freeze(garage, signal.SIGSTOP)
    where = {"placement": {"constraints": ["name == garage"]}}
    task = kitchen.submit("sh", "-c", BEATS, str(ledger), "1", retry={"max_attempts": 1}, **where)
    ended = kitchen.ended(task)
    assert (ended["state"], ended["attempts"][0]["node_name"]) == ("lost", "garage")
    freeze(garage, signal.SIGCONT)
    fleet.wait_seen(kitchen, "garage")
    assert kitchen.ended(kitchen.submit("true", **where))["state"] == "succeeded"
    assert lines(ledger) == []


def test_keep_lets_it_finish_and_report(fleet, ledger):
    kitchen, garage = up(fleet)
    task = on_garage(kitchen, ledger, 5 * (LEASE_S + 3), max_attempts=1, on_disconnect="keep")
    garage.kill()
    eventually(lambda: "1 garage end" in lines(ledger), "it goes on to its end")
    garage.start(SOON)
    assert kitchen.ended(task)["state"] == "succeeded"
    assert [line for line in lines(ledger) if line.endswith("start")] == ["1 garage start"]


def test_at_most_once_is_at_most_once(fleet, ledger):
    kitchen, garage = up(fleet)
    task = on_garage(kitchen, ledger, 1000, max_attempts=1)
    garage.kill_host()
    state = f"/api/v1/tasks/{task['id']}"
    eventually(lambda: "unreachable since" in kitchen.get(state)["reason"], "it says why nothing happens")
    ended = kitchen.ended(task)
    assert ended["state"] == "lost"
    assert [line for line in lines(ledger) if line.endswith("start")] == ["1 garage start"]
    garage.start(SOON)
    fleet.wait_seen(kitchen, "garage")
    assert kitchen.get(state)["state"] == "lost"
    assert [line for line in lines(ledger) if line.endswith("start")] == ["1 garage start"]
