"""Whole nodes on three machines of one LAN: nobody tells them of each other but mDNS."""

import json
import time
from datetime import UTC, datetime

import pytest
from lan_fleet import Lan, LanFleet, ip
from real_fleet import eventually

from edgeorch.rest.tokens import Token, hash_of, new_text, write_tokens

pytestmark = pytest.mark.root

NAMES = ("kitchen", "garage", "attic")
CREATED = datetime(2023, 1, 1, tzinfo=UTC)
PATIENCE_DEAD_S = 15.0
"""Three times what is promised on an idle machine: this one may be busy."""


@pytest.fixture
def lan():
    made = Lan(4)
    yield made
    made.close()


@pytest.fixture
def fleet(lan, tmp_path):
    spaces = {
        name: (space, f"10.78.0.{number}")
        for number, (name, space) in enumerate(zip(NAMES, lan.spaces, strict=False), 1)
    }
    made = LanFleet(tmp_path / "home", spaces)
    yield made
    made.close()


def test_three_machines_find_each_other_and_the_best_one_works(lan, fleet):
    weights = {"kitchen": 0.01, "garage": 100.0, "attic": 1.0}
    for name, node in fleet.nodes.items():
        node.start(f"[scoring]\nweight={weights[name]}\n")
    for node in fleet.nodes.values():
        fleet.wait_seen(node, *NAMES)
    kitchen = fleet.nodes["kitchen"]
    eventually(lambda: kitchen.get("/api/v1/nodes/garage")["score"]["value"] > 1, "garage has a score")
    body = {"name": "x", "service": [{"driver": "native", "argv": ["true"]}]}
    ranking = json.loads(kitchen.request("POST", "/api/v1/tasks?dry_run=true", body)[1])["ranking"]
    assert [line["node_name"] for line in ranking] == ["garage", "attic", "kitchen"]
    done = kitchen.ended(kitchen.submit("hostname"))
    assert [(one["node_name"], one["state"]) for one in done["attempts"]] == [("garage", "succeeded")]
    original = {
        "ServiceName": "hello",
        "ServiceInfo": [{"ExecutionType": "native", "ExecCmd": ["echo", "hello"]}],
    }
    answer = json.loads(kitchen.request("POST", "/api/v1/orchestration/services", original)[1])
    assert (answer["Message"], answer["RemoteTargetInfo"]["Target"]) == ("ERROR_NONE", "10.78.0.2")

    # The rest of the LAN: TLS and a token, whatever loopback may do.
    status, said = kitchen.asked_from(lan.spaces[3])
    assert (status, json.loads(said)["type"]) == (426, "/docs/problems#tls-required")
    assert "https://" in json.loads(said)["hint"]
    status, said = kitchen.asked_from(lan.spaces[3], tls=True)
    assert (status, json.loads(said)["type"]) == (401, "/docs/problems#unauthorized")
    text = new_text()
    tokens = write_tokens([Token(name="laptop", role="read", sha256=hash_of(text), created=CREATED)])
    (kitchen.folder / "tokens.toml").write_bytes(tokens)
    kitchen.reload()
    bearer = {"Authorization": f"Bearer {text}"}
    eventually(lambda: kitchen.asked_from(lan.spaces[3], tls=True, **bearer)[0] == 200, "the token is taken")
    assert all("Traceback" not in node.log() for node in fleet.nodes.values())


def test_another_fleet_on_the_same_lan_is_another_world(lan, fleet, tmp_path):
    """Same fleet name, same LAN, another CA."""
    other = LanFleet(tmp_path / "other", {"stranger": (lan.spaces[3], "10.78.0.4")})
    try:
        stranger = other.nodes["stranger"].start()
        kitchen, garage = fleet.start("kitchen", "garage")
        said = "another fleet is on this network"
        for node in (stranger, kitchen, garage):
            eventually(lambda log=node.log: said in log(), f"{node.name} says that {said}")
        assert set(stranger.sees()) == {"stranger"}
        assert set(kitchen.sees()) == set(garage.sees()) == {"kitchen", "garage"}
        assert "connection refused" not in kitchen.log() + garage.log() + stranger.log()
    finally:
        other.close()


def test_leaving_moving_and_a_pulled_cable(lan, fleet):
    kitchen, garage, attic = fleet.start(*NAMES)

    # A clean stop is known at once.
    assert garage.stop() == 0
    assert (kitchen.sees()["garage"], attic.sees()["garage"]) == ("left", "left")

    # A new address from DHCP, and nobody else was told.
    ip("-n", attic.space, "addr", "del", f"{attic.host}/24", "dev", "eth0")
    ip("-n", attic.space, "addr", "add", "10.78.0.33/24", "dev", "eth0")
    attic.host = "10.78.0.33"
    eventually(
        lambda: (
            (found := kitchen.get("/api/v1/nodes/attic"))["state"] == "alive"
            and found["address"] == attic.host
        ),
        "kitchen follows attic to its new address",
    )
    done = kitchen.ended(kitchen.submit("true", placement={"node": "attic"}))
    assert done["state"] == "succeeded"
    garage.start()
    fleet.wait_seen(garage, *NAMES)
    fleet.wait_seen(attic, *NAMES)

    # A pulled cable: both sides say dead soon; put back, they find each other again.
    lan.plug(3, "down")
    start = time.monotonic()
    fleet.wait_seen(kitchen, "attic", state="dead")
    fleet.wait_seen(attic, "kitchen", "garage", state="dead")
    assert time.monotonic() - start < PATIENCE_DEAD_S
    assert kitchen.sees()["garage"] == "alive"
    lan.plug(3, "up")
    for node in (kitchen, garage, attic):
        fleet.wait_seen(node, *NAMES)
    assert kitchen.ended(kitchen.submit("true", placement={"node": "attic"}))["state"] == "succeeded"
    assert all("Traceback" not in node.log() for node in fleet.nodes.values())
