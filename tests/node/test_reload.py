"""SIGHUP at real nodes: what comes into force at once, what needs a restart, what is refused."""

import contextlib

import pytest
from real_fleet import RealFleet, eventually


@pytest.fixture
def fleet(tmp_path):
    made = RealFleet(tmp_path, "kitchen", "cellar")
    with contextlib.closing(made):
        yield made


def wait_log(node, text, count=1):
    eventually(lambda: node.log().count(text) >= count, f"{node.name} says {text!r}: {node.log()[-2000:]}")


def label(node, other):
    """What another node knows of its labels."""
    found = {one["name"]: one for one in other.get("/api/v1/nodes")["nodes"]}
    return found[node.name]["labels"]


def test_labels_weight_and_log_level_come_into_force(fleet):
    kitchen, cellar = fleet.start()
    kitchen.write_config('[node.labels]\nzone="kitchen"\n[scoring]\nweight=3.0\n[log]\nlevel="debug"\n')
    kitchen.reload()
    wait_log(kitchen, "reloaded")
    eventually(lambda: label(kitchen, cellar) == {"zone": "kitchen"}, "the label is known everywhere")
    task = cellar.submit("true", placement={"constraints": ["labels.zone == kitchen"]})
    assert [one["node_name"] for one in cellar.ended(task)["attempts"]] == ["kitchen"]

    kitchen.write_config('[log]\nlevel="error"\n')
    kitchen.reload()
    eventually(lambda: label(kitchen, cellar) == {}, "the label is gone everywhere")
    before = kitchen.log()
    kitchen.ended(kitchen.submit("true"))
    assert kitchen.log() == before


def test_a_new_seed_is_dialled_at_once(fleet):
    kitchen = fleet.nodes["kitchen"]
    everybody = fleet.nodes
    fleet.nodes = {"kitchen": kitchen}
    kitchen.start()
    fleet.nodes = {"cellar": everybody["cellar"]}
    cellar = everybody["cellar"].start()
    assert kitchen.sees() == {"kitchen": "alive"}
    fleet.nodes = everybody
    kitchen.write_config()
    kitchen.reload()
    fleet.wait_seen(kitchen, "cellar")
    fleet.wait_seen(cellar, "kitchen")


def test_what_needs_a_restart_is_told_and_nothing_else_is_held_up(fleet):
    kitchen = fleet.nodes["kitchen"].start()
    kitchen.write_config('[node.labels]\nzone="kitchen"\n[executor]\nslots=1\n')
    kitchen.reload()
    wait_log(kitchen, "some changed settings need a restart")
    assert "executor.slots" in kitchen.log()
    wait_log(kitchen, "reloaded")
    assert label(kitchen, kitchen) == {"zone": "kitchen"}


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ('[node.labels]\nzone="kitchen"\n[exekutor]\n', "unknown section: 'exekutor'"),
        ('[node.labels]\nzone="kitchen"\n[log]\nlevel="loud"\n', "log.level"),
    ],
)
def test_settings_that_cannot_be_used_leave_the_old_in_force(fleet, extra, reason):
    kitchen = fleet.nodes["kitchen"].start()
    kitchen.write_config(extra)
    kitchen.reload()
    wait_log(kitchen, "kept the old ones")
    assert reason in kitchen.log()
    assert label(kitchen, kitchen) == {}
    kitchen.write_config('[node.labels]\nzone="kitchen"\n')
    kitchen.reload()
    wait_log(kitchen, "reloaded", 2)
    assert label(kitchen, kitchen) == {"zone": "kitchen"}
