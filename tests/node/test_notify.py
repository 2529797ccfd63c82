"""What a real node tells systemd: that it serves, how it is, that it lives, that it reloads and stops."""

import signal

import pytest
from notify_socket import Systemd
from real_fleet import PATIENCE_S, RealFleet


@pytest.fixture
def told(tmp_path):
    made = Systemd(tmp_path / "notify")
    with made.socket:
        yield made


@pytest.fixture
def node(tmp_path, told):
    fleet = RealFleet(tmp_path, "kitchen")
    env = {"NOTIFY_SOCKET": str(told.path), "WATCHDOG_USEC": "300000"}
    try:
        yield fleet.nodes["kitchen"].start(env=env)
    finally:
        fleet.close()


def test_the_life_of_a_node_as_systemd_sees_it(node, told):
    told.until("STATUS=starting: ")
    # What else the line says depends on the machine: its clock, its disk, its Docker Engine.
    told.until("STATUS=ready: 0 peers alive; 0 running, 0 waiting; score ", "READY=1")
    told.until("WATCHDOG=1")
    told.until("WATCHDOG=1")

    node.reload()
    told.until("RELOADING=1")
    told.until("READY=1")
    told.until("WATCHDOG=1")

    node.process.send_signal(signal.SIGTERM)
    told.until("STOPPING=1")
    assert node.process.wait(PATIENCE_S) == 0


def test_a_node_that_cannot_serve_says_nothing_of_readiness(tmp_path, told):
    fleet = RealFleet(tmp_path, "kitchen")
    try:
        kitchen = fleet.nodes["kitchen"]
        (kitchen.folder / "pki" / "node.key").unlink()
        with pytest.raises(AssertionError, match="cannot read the node's key"):
            kitchen.start(env={"NOTIFY_SOCKET": str(told.path)})
    finally:
        fleet.close()
    assert "cannot read the node's key" in told.until("STATUS=ended: ")[-1]
    assert not any(line.startswith("READY") for line in told.lines)
