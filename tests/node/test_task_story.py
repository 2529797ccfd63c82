"""What the log of real nodes tells of a task: enough to follow it, in few lines, and no secret."""

import contextlib
import json

import pytest
from real_fleet import RealFleet, eventually

SECRET = "s3cr3t-value"


@pytest.fixture
def nodes(tmp_path):
    fleet = RealFleet(tmp_path, "kitchen", "cellar")
    with contextlib.closing(fleet):
        started = [node.start('[log]\nformat="json"\n') for node in fleet.nodes.values()]
        for node in started:
            fleet.wait_seen(node, "kitchen", "cellar")
        yield started


def story(node, task):
    """(event, attempt, peer) of each line about a task."""
    lines = [json.loads(line) for line in node.log().splitlines() if task["id"] in line]
    return [(line["event"], line.get("attempt"), line.get("peer")) for line in lines]


def run(node, target, *argv, **fields):
    service = [{"driver": "native", "argv": [*argv], "env": {"KEY": SECRET}}]
    task = node.submit(service=service, placement={"node": target.id}, **fields)
    return node.ended(task)


def test_a_task_is_told_where_it_came_from_and_where_it_ran(nodes):
    kitchen, cellar = nodes
    here = run(kitchen, kitchen, "true", SECRET)
    away = run(kitchen, cellar, "true", SECRET)
    assert (here["state"], away["state"]) == ("succeeded", "succeeded")
    assert story(kitchen, here) == [
        ("accepted", None, None),
        ("placed", 1, "kitchen"),
        ("started", 1, "kitchen"),
        ("ended", None, None),
    ]
    assert story(kitchen, away) == [("accepted", None, None), ("placed", 1, "cellar"), ("ended", None, None)]
    target = [("started", 1, "kitchen"), ("ended here", 1, "kitchen")]
    eventually(lambda: story(cellar, away) == target, "the story of the target")
    assert SECRET not in kitchen.log() + cellar.log()


def test_further_attempts_are_warnings_and_the_end_is_told(nodes):
    kitchen, cellar = nodes
    retry = {"max_attempts": 4, "on": ["failed"], "backoff_s": 0.01}
    task = run(kitchen, cellar, "false", retry=retry)
    assert (task["state"], len(task["attempts"])) == ("failed", 4)
    again = [("placed again", number, "cellar") for number in (2, 3, 4)]
    assert story(kitchen, task) == [
        ("accepted", None, None),
        ("placed", 1, "cellar"),
        *again,
        ("ended", None, None),
    ]
    assert len(story(cellar, task)) <= 4
