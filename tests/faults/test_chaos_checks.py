"""Each rule of a chaos run can be broken, and says so."""

import copy

import pytest
from chaos_checks import History, violations, waits_for_the_dead

SPEC = {
    "retry": {"max_attempts": 2},
    "on_disconnect": "stop",
    "callback_url": "http://receiver/",
    "metadata": {"number": "1"},
}
LOST = {"number": 1, "node_name": "m1", "state": "lost", "reason": "", "started_at": 10.0, "ended_at": 30.0}
GOOD = {
    "number": 2,
    "node_name": "m2",
    "state": "succeeded",
    "reason": "",
    "started_at": 31.0,
    "ended_at": 32.0,
}
FINE = History(
    accepted={"t": SPEC},
    tasks={
        "t": {
            "id": "t",
            "state": "succeeded",
            "reason": "",
            "origin_name": "m3",
            "spec": SPEC,
            "attempts": [LOST, GOOD],
        }
    },
    ledger={
        ("t", 1): [(10.0, "start"), (10.5, "on"), (11.0, "on")],
        ("t", 2): [(31.0, "start"), (31.5, "on"), (32.0, "end")],
    },
    ends={"t": ["succeeded"]},
    told={
        "t": [
            ("t.1", {"event": "started", "state": "running"}),
            ("t.1", {"event": "started", "state": "running"}),
            ("t.2", {"event": "ended", "state": "succeeded"}),
        ]
    },
)


def without(names, where):
    for name in names:
        where.pop(name)


BROKEN = {
    "lost": [
        lambda history: history.tasks.clear(),
        lambda history: history.tasks["t"].update(state="running"),
    ],
    "run_twice": [
        lambda history: history.tasks["t"]["spec"]["retry"].update(max_attempts=1),
        lambda history: history.ledger["t", 2].insert(0, (30.5, "start")),
    ],
    "overlaps": [
        lambda history: history.ledger["t", 1].extend((31.1 + beat / 2, "on") for beat in range(6)),
    ],
    "untrue": [
        lambda history: history.tasks["t"]["attempts"].reverse(),
        lambda history: history.tasks["t"]["attempts"][0].update(state="running"),
        lambda history: history.ledger["t", 2].pop(),
        lambda history: history.ends.update(t=["failed", "succeeded"]),
    ],
    "invented": [
        lambda history: history.tasks.update(u=history.tasks["t"]),
        lambda history: history.ledger.update({("stranger", 1): [(1.0, "start")]}),
    ],
    "callbacks": [
        lambda history: history.told.clear(),
        lambda history: history.told["t"].reverse(),
        lambda history: history.told["t"].append(("t.2", {"event": "ended", "state": "failed"})),
    ],
}


def test_a_good_history_breaks_nothing():
    assert not any(violations(FINE).values())


@pytest.mark.parametrize(
    ("rule", "number"), [(rule, n) for rule, ways in BROKEN.items() for n in range(len(ways))]
)
def test_a_broken_rule_is_told(rule, number):
    history = copy.deepcopy(FINE)
    BROKEN[rule][number](history)
    assert violations(history)[rule]


def test_the_wait_for_a_dead_node_counts_from_its_death_or_its_origins_return():
    dead = [("m1", 5.0, 6.0), ("m1", 12.0, 20.0), ("m2", 20.0, 21.0)]
    assert list(waits_for_the_dead(FINE, dead)) == [19.0]
    assert list(waits_for_the_dead(FINE, [*dead, ("m3", 13.0, 25.0)])) == [6.0]
    assert list(waits_for_the_dead(FINE, [("m1", 5.0, 6.0)])) == []
