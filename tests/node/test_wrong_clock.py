"""A real node whose clock is wrong: it starts, says so, is refused for its clock, and recovers by itself."""

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
