"""This node's facts: its drivers, its state over a restart, its newest sample."""

from types import SimpleNamespace

import pytest
import trio

from edgeorch.errors import StartError
from edgeorch.executor.driver import Available
from edgeorch.membership import SelfInfo
from edgeorch.model import NodeInfo
from edgeorch.this_node import ThisNode, read_state


class Switch:
    """A driver of which only the availability counts."""

    def __init__(self, name, **available):
        self.name = name
        self.changed = trio.Event()
        self.available = Available(**available)

    def turn(self, **available):
        self.available = Available(**available)
        self.changed, before = trio.Event(), self.changed
        before.set()


def make(path, *drivers, sample=None):
    info = SelfInfo(NodeInfo(id="0123456789", name="kitchen", fleet="f", version="1"))
    sampler = SimpleNamespace(current=lambda: sample)
    return ThisNode(info, sampler, {driver.name: driver for driver in drivers}, path / "node_state")


async def test_only_working_drivers_are_told(tmp_path, nursery, autojump_clock):
    native = Switch("native", version="1")
    container = Switch("container", reason="no Docker Engine answers")
    node = make(tmp_path, native, container)
    assert node.info.drivers == {"native": "1"}
    assert node.problems() == ["container: no Docker Engine answers"]
    await nursery.start(node.run)
    await trio.testing.wait_all_tasks_blocked()

    before = node.info.incarnation
    container.turn(version="28.0")
    await trio.testing.wait_all_tasks_blocked()
    assert node.info.drivers == {"native": "1", "container": "28.0"}
    assert (node.problems(), node.info.incarnation) == ([], before + 1)

    native.turn(reason="gone")
    await trio.testing.wait_all_tasks_blocked()
    native.turn(version="2")
    container.turn(reason="stopped")
    await trio.testing.wait_all_tasks_blocked()
    assert node.info.drivers == {"native": "2"}
    nursery.cancel_scope.cancel()


async def test_a_change_before_run_is_not_missed(tmp_path, nursery):
    native = Switch("native", reason="starting")
    node = make(tmp_path, native)
    native.turn(version="1")
    await nursery.start(node.run)
    await trio.testing.wait_all_tasks_blocked()
    assert node.info.drivers == {"native": "1"}
    nursery.cancel_scope.cancel()


async def test_a_node_without_drivers_lives(tmp_path, nursery):
    node = make(tmp_path)
    await nursery.start(node.run)
    await trio.testing.wait_all_tasks_blocked()
    assert (node.info.drivers, node.problems()) == ({}, [])
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("state", ["cordoned", "draining"])
def test_the_state_survives_a_restart(tmp_path, state):
    make(tmp_path).set_state(state)
    again = make(tmp_path)
    assert again.info.state == state
    again.set_state("ready")
    assert make(tmp_path).info.state == "ready"


def test_a_state_that_cannot_be_kept_holds_until_the_restart(tmp_path):
    node = make(tmp_path / "missing")
    node.set_state("draining")
    assert node.info.state == "draining"
    assert make(tmp_path / "missing").info.state == "ready"


@pytest.mark.parametrize("content", [b"", b"paused", b"\xff", b"DRAINING"])
def test_what_is_no_state_counts_as_ready(tmp_path, content):
    (tmp_path / "node_state").write_bytes(content)
    assert read_state(tmp_path / "node_state") == "ready"


def test_before_the_first_measurement_there_is_no_sample(tmp_path):
    with pytest.raises(StartError, match="nothing was measured yet"):
        make(tmp_path).sample()
    assert make(tmp_path, sample="sample").sample() == "sample"
