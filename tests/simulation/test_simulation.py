"""The simulation itself: it can be repeated, it can fail, and what it once found stays mended."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import sim_node
import simulate

from edgeorch.dispatch.accept import Acceptor
from edgeorch.dispatch.children import Parents
from edgeorch.store.sealing import Sealer
from edgeorch.testing.stores import MemoryStore

PROGRAM = Path(simulate.__file__)
FOUND = {
    2: "a target that came back took away why its task had ended",
    4: "tasks that waited for a target with a full disk had each other offered without a pause",
    13: "a clock that was set back before a restart gave waiting tasks more time",
    24: "an offer whose origin went away while it was written left a run that nobody ended",
    28: "the end of an attempt, late on its way to the disk, had a placed task placed again",
    31: "the end of a task that a full disk had refused was never written",
    44: "a waiting task whose start here a full disk had refused was never tried again",
    81: "the end of a task whose report was cut off on its way to the disk was told twice",
    99: "a parent that was out of time, not yet on the disk, was cancelled",
    101: "a lease was over before a slow disk let its offer go out",
    116: "a callback after a restart had the key of one that had been delivered",
}


def again(seed):
    """What the program says of one seed, in a process of its own."""
    command = [sys.executable, PROGRAM, "--seed", str(seed)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=250).stdout


def test_a_seed_gives_the_same_trace_twice():
    first, second = again(6), again(6)
    assert first == second
    assert "broken=''" in first
    assert again(7) != first


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_stays_mended(seed):
    outcome = again(seed)
    assert "broken=''" in outcome, FOUND[seed]


def test_a_disk_that_forgets_what_it_has_confirmed_is_found(monkeypatch):
    plain = sim_node.CheckedStore._apply

    def forgetful(store, change):
        plain(store, change)
        for task_id in list(store._tasks):
            if store._seams.rng.random() < 0.01:
                del store._tasks[task_id]

    monkeypatch.setattr(sim_node.CheckedStore, "_apply", forgetful)
    assert "does not know it any more" in simulate.run(31).broken


def test_a_host_that_starts_an_attempt_twice_is_found(monkeypatch):
    plain = sim_node.CheckedHost.begin

    def twice(host, driver, launch, steps):
        handle = plain(host, driver, launch, steps)
        host._checks.started(host._name, launch)
        return handle

    monkeypatch.setattr(sim_node.CheckedHost, "begin", twice)
    assert "was started twice" in simulate.run(6).broken


async def _nothing(*_arguments):
    """Instead of what should be done."""


def _bare(_sealer, _task_id, secrets):
    return msgspec.msgpack.encode(secrets)


@pytest.mark.parametrize(
    ("part", "name", "instead", "found"),
    [
        (Sealer, "seal", _bare, "a secret is in the database"),
        (MemoryStore, "key", _nothing, "was answered with"),
        (Acceptor, "_next_service_id", lambda _: 7, "has the ServiceID of"),
        (Parents, "_cancel_children", _nothing, "and it does not know"),
        (Parents, "child_ended", _nothing, "its children have ended"),
    ],
)
def test_what_the_load_is_there_to_find_is_found(monkeypatch, part, name, instead, found):
    monkeypatch.setattr(part, name, instead)
    assert any(found in simulate.run(seed).broken for seed in (6, 7, 9, 11))
