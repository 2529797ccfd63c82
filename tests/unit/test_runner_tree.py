"""Whose process is it: the pure part of ending a whole tree."""

import os
import signal

import pytest

from edgeorch.runner import tree
from edgeorch.runner.tree import Family, Process

RUNNER = 100


def process(pid, parent, *, session=None, started=50, dead=False):
    session = session or pid
    return Process(pid=pid, parent=parent, group=session, session=session, started=started, dead=dead)


def table(*processes):
    return {each.pid: each for each in processes}


def family(key, main, *, since=10, ending=False, sessions=()):
    made = Family(key=key, marker=f"EDGEORCH_WORK=/{key}".encode(), since=since, main=main, ending=ending)
    made.sessions |= {main, *sessions} if main else set(sessions)
    return made


def owners(processes, families, ours=()):
    members = tree.assign(table(*processes), RUNNER, families, ours)
    return {key: sorted(each.pid for each in found) for key, found in members.items()}


@pytest.fixture(autouse=True)
def marks(monkeypatch):
    """Environments of processes; none has one unless a test says so."""
    lines = {}
    monkeypatch.setattr(tree, "environment", lambda pid: lines.get(pid, set()))
    return lines


def test_descendants_of_the_main_process_are_its_own():
    processes = [
        process(1, 0),
        process(200, RUNNER),
        process(201, 200, session=77),
        process(202, 201),
        process(300, 1),
    ]
    assert owners(processes, [family("a", 200)]) == {"a": [200, 201, 202]}


def test_an_orphan_is_known_by_its_session():
    processes = [process(200, RUNNER), process(300, RUNNER), process(301, RUNNER, session=300)]
    assert owners(processes, [family("a", 200), family("b", 300)]) == {"a": [200], "b": [300, 301]}


def test_an_orphan_is_known_by_what_was_seen_before():
    one, two = family("a", 200), family("b", 300)
    tree.assign(table(process(200, RUNNER), process(201, 200), process(300, RUNNER)), RUNNER, [one, two], ())
    one.main = None
    after = [process(201, RUNNER), process(300, RUNNER), process(202, RUNNER, session=201)]
    assert owners(after, [one, two]) == {"a": [201, 202], "b": [300]}


def test_a_reused_pid_is_somebody_else(marks):
    one, two = family("a", 200), family("b", 300)
    tree.assign(table(process(200, RUNNER), process(201, 200), process(300, RUNNER)), RUNNER, [one, two], ())
    one.sessions.clear()
    marks[201] = {b"EDGEORCH_WORK=/b"}
    after = [process(200, RUNNER), process(201, RUNNER, started=60), process(300, RUNNER)]
    assert owners(after, [one, two]) == {"a": [200], "b": [201, 300]}


def test_an_orphan_is_known_by_its_environment(marks):
    marks[400] = {b"PATH=/bin", b"EDGEORCH_WORK=/b"}
    processes = [process(200, RUNNER), process(300, RUNNER), process(400, RUNNER)]
    assert owners(processes, [family("a", 200), family("b", 300)]) == {"a": [200], "b": [300, 400]}


def test_an_unmarked_orphan_belongs_to_the_only_family_that_is_older():
    processes = [process(400, RUNNER, started=50), process(300, RUNNER, started=60)]
    assert owners(processes, [family("a", None, since=40), family("b", 300, since=60)])["a"] == [400]


def test_an_unmarked_orphan_is_left_alone_while_it_may_be_a_running_ones():
    processes = [process(400, RUNNER), process(300, RUNNER)]
    ending, going_on = family("a", None, ending=True), family("b", 300)
    assert owners(processes, [ending, going_on]) == {"a": [], "b": [300]}
    going_on.ending = True
    assert owners(processes, [ending, going_on]) == {"a": [400], "b": [300]}


def test_the_dead_and_our_own_helpers_are_nobodys():
    processes = [
        process(200, RUNNER, dead=True),
        process(201, 200),
        process(500, RUNNER),
        process(600, RUNNER, dead=True),
    ]
    assert owners(processes, [family("a", 200)], ours={500}) == {"a": [201]}


def test_every_process_is_given_once():
    # A pid may name a parent that is not in the snapshot, or even a loop made by reuse within it.
    processes = [process(200, RUNNER), process(201, 202), process(202, 201), process(203, 999)]
    assert owners(processes, [family("a", 200)]) == {"a": [200]}


@pytest.mark.parametrize("name", ["sh", "a b", "(x) R 1", ")", "\n"])
def test_a_name_cannot_confuse_the_parser(name):
    rest = " ".join(["S", "7", "8", "9", *["0"] * 15, "4242", "0"])
    assert tree.parse(f"5 ({name}) {rest}\n") == Process(5, 7, 8, 9, 4242, dead=False)


def test_look_sees_this_process():
    found = tree.look(os.getpid())
    assert found is not None
    assert (found.pid, found.parent, found.group) == (os.getpid(), os.getppid(), os.getpgrp())
    assert tree.snapshot()[os.getpid()] == found
    assert tree.look(2**22 + 1) is None


def test_a_signal_for_one_that_is_gone_or_replaced_goes_nowhere():
    me = tree.look(os.getpid())
    tree.send([me._replace(started=1), me._replace(pid=2**22 + 1)], signal.SIGKILL)


def test_a_child_that_nobody_knows_is_seen_although_one_that_is_known_is_not_there_yet():
    pids = {os.posix_spawn("/bin/sleep", ("sleep", "100"), {}) for _ in range(2)}
    try:
        children = tree.Children()
        assert not children.others_than(pids)
        assert not children.others_than(pids, {1: "not there yet"})
        known = {max(pids), 1}
        assert children.others_than(known)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
