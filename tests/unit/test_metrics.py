"""``/metrics`` as a scraper reads it."""

from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgeorch import __version__
from edgeorch.metrics import render
from edgeorch.store.sqlite import Statistics
from edgeorch.timing import Histogram, clock


def parsed(**parts):
    """Family by name; every name only once."""
    text = render({name.rstrip("_"): lambda numbers=numbers: numbers for name, numbers in parts.items()})
    families = list(text_string_to_metric_families(text.decode()))
    found = {family.name: family for family in families}
    assert len(found) == len(families)
    return found


def samples(family):
    return {tuple(sample.labels.items()): sample.value for sample in family.samples}


def test_the_release_is_told():
    (family,) = parsed().values()
    assert samples(family) == {(("version", __version__),): 1.0}


def test_numbers_get_their_part_s_prefix_and_their_kind():
    found = parsed(
        _={"start_time": 1.5},
        callbacks={"delivered": 3, "busy": 1},
        rest={"connections": 2, "accepted_total": 7},
        membership={"late_s": 0.25, "ok": True},
    )
    kinds = {name: (family.type, family.samples[0].value) for name, family in found.items()}
    del kinds["edgeorch_build_info"]
    assert kinds == {
        "edgeorch_start_time": ("gauge", 1.5),
        "edgeorch_callbacks_delivered": ("counter", 3.0),
        "edgeorch_callbacks_busy": ("gauge", 1.0),
        "edgeorch_rest_connections": ("gauge", 2.0),
        "edgeorch_rest_accepted": ("counter", 7.0),
        "edgeorch_membership_late_s": ("gauge", 0.25),
        "edgeorch_membership_ok": ("gauge", 1.0),
    }
    assert found["edgeorch_rest_accepted"].samples[0].name == "edgeorch_rest_accepted_total"
    assert found["edgeorch_start_time"].documentation.startswith("When this node started")


def test_states_and_reasons_are_labels_and_other_mappings_names():
    found = parsed(
        dispatch={"tasks_open": {"waiting": 2, "running": 0}, "queue": {"length": 4}},
        wire={"refused": {"bad certificate": 5, 'a "b"\n\\c': 1}, "peers": {"up": 1}},
    )
    assert samples(found["edgeorch_dispatch_tasks_open"]) == {
        (("state", "waiting"),): 2.0,
        (("state", "running"),): 0.0,
    }
    assert found["edgeorch_dispatch_tasks_open"].type == "gauge"
    assert samples(found["edgeorch_wire_refused"]) == {
        (("reason", "bad certificate"),): 5.0,
        (("reason", 'a "b"\n\\c'),): 1.0,
    }
    assert found["edgeorch_wire_refused"].type == "counter"
    assert samples(found["edgeorch_wire_peers"]) == {(("state", "up"),): 1.0}
    assert samples(found["edgeorch_dispatch_queue_length"]) == {(): 4.0}


def test_no_reason_yet_is_valid_text():
    assert samples(parsed(wire={"refused": {}})["edgeorch_wire_refused"]) == {}


def test_dataclasses_count_and_what_is_no_number_is_left_out():
    @dataclass
    class Numbers:
        slots: int
        name: str
        last: float | None

    found = parsed(store=Statistics(5, 4, 0, 1), executor=Numbers(2, "x", None))
    del found["edgeorch_build_info"]
    assert {name: family.type for name, family in found.items()} == {
        "edgeorch_store_commits": "counter",
        "edgeorch_store_transactions": "counter",
        "edgeorch_store_failures": "counter",
        "edgeorch_store_waiting": "gauge",
        "edgeorch_store_commit_seconds": "histogram",
        "edgeorch_executor_slots": "gauge",
    }


def test_histograms_count_what_took_no_longer():
    took, begun = Histogram(), clock()
    for seconds in (0.00005, 0.003, 0.004, 7200):
        took.since(begun - seconds)
    family = parsed(store={"commit_seconds": took})["edgeorch_store_commit_seconds"]
    assert family.type == "histogram"
    found = {(one.name, one.labels.get("le")): one.value for one in family.samples}
    name = "edgeorch_store_commit_seconds"
    assert [found[f"{name}_bucket", le] for le in ("0.0025", "0.005", "600.0", "+Inf")] == [1, 3, 3, 4]
    assert found[f"{name}_count", None] == 4
    assert found[f"{name}_sum", None] == pytest.approx(7200, abs=1)
