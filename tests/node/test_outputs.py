"""Output of tasks on real nodes, asked at other nodes: live, cut, resumed, after a death, over retries."""

import contextlib
import json
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from real_fleet import RealFleet, eventually

MAX_BYTES = 2000


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Three nodes for all tests that kill none."""
    made = RealFleet(tmp_path_factory.mktemp("fleet"), "kitchen", "garage", "attic")
    try:
        for node in made.nodes.values():
            node.start(f"[output]\nmax_bytes = {MAX_BYTES}\n")
        for node in made.nodes.values():
            made.wait_seen(node, *made.nodes)
        yield made
    finally:
        made.close()


@pytest.fixture
def mortals(tmp_path):
    """Two nodes that may be killed."""
    made = RealFleet(tmp_path, "kitchen", "garage")
    quick = "[lease]\nlease_s = 3\nrenew_s = 1\n[membership]\nprobe_s = 0.5\nsuspect_s = 1\ndead_s = 2\n"
    try:
        for node in made.nodes.values():
            node.start(quick)
        for node in made.nodes.values():
            made.wait_seen(node, *made.nodes)
        yield made
    finally:
        made.close()


class Following:
    """An answer of ``GET …/output`` while it comes."""

    def __init__(self, node, task, query):
        self._connection = node.connection()
        self._connection.request("GET", f"/api/v1/tasks/{task['id']}/output?{query}")
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200, self._answer.read()
        self.tail_only = self._answer.getheader("Edgeorch-Output") == "tail-only"

    def line(self):
        return self._answer.readline()

    def rest(self):
        return self._answer.read()

    def close(self):
        self._answer.close()
        self._connection.close()


@contextlib.contextmanager
def following(node, task, query="follow=true"):
    made = Following(node, task, query)
    try:
        yield made
    finally:
        made.close()


def output(node, task, query=""):
    status, body = node.request("GET", f"/api/v1/tasks/{task['id']}/output?{query}")
    assert status == 200, body
    return body


def pieces(text):
    return [json.loads(line) for line in text.splitlines()]


def on(name):
    return {"placement": {"node": name}, "retry": {"max_attempts": 1}}


def number(node, name):
    """One metric without labels."""
    for family in text_string_to_metric_families(node.request("GET", "/metrics")[1].decode()):
        if family.name == name:
            return family.samples[0].value
    raise AssertionError(f"{name} is no metric")


def test_output_is_followed_live_through_other_nodes(fleet, tmp_path):
    """The service goes on only when its line has been read two nodes away."""
    kitchen, garage, attic = fleet.nodes.values()
    gate = tmp_path / "gate"
    script = f"echo one; until [ -e {gate} ]; do sleep 0.02; done; echo two; echo bad >&2"
    task = kitchen.submit("sh", "-c", script, **on("garage"))
    with contextlib.ExitStack() as stack:
        followers = [stack.enter_context(following(node, task)) for node in (kitchen, garage, attic)]
        assert [follower.line() for follower in followers] == [b"one\n"] * 3
        gate.touch()
        for follower in followers:
            assert sorted(follower.rest().splitlines()) == [b"bad", b"two"]
            assert not follower.tail_only
    assert kitchen.ended(task)["state"] == "succeeded"


def test_parts_of_an_output(fleet):
    kitchen, _, attic = fleet.nodes.values()
    task = kitchen.submit("sh", "-c", "seq 100; echo oops >&2", **on("garage"))
    kitchen.ended(task)
    whole = b"".join(b"%d\n" % n for n in range(1, 101))
    for node in (kitchen, attic):
        assert output(node, task, "stream=stdout") == whole
        assert output(node, task, "stream=stdout&tail=2") == b"99\n100\n"
        assert output(node, task, "stream=stdout&tail=2&offset=289") == b"100\n"[-3:]
        assert output(node, task, "stream=stdout&offset=285") == whole[285:]
        assert output(node, task, "stream=stdout&offset=100000") == b""
        assert output(node, task, "stream=stderr&attempt=1") == b"oops\n"
        *chunks, end = pieces(output(node, task, "stream=stdout&format=ndjson&offset=288"))
        assert chunks == [{"stream": "stdout", "offset": 288, "data": "100\n"}]
        assert end == {"end": "ended"}
        status, body = node.request("GET", f"/api/v1/tasks/{task['id']}/output?attempt=7")
        assert (status, json.loads(body)["detail"]) == (404, f"task {task['id']} has no attempt 7")


def test_of_a_task_that_printed_nothing_the_output_is_whole(fleet):
    """Its folder has gone to another task by then."""
    kitchen, garage, attic = fleet.nodes.values()
    for target in ("kitchen", "garage"):
        task = kitchen.submit("true", **on(target))
        kitchen.ended(task)
        folder = fleet.nodes[target].folder / f"state/tasks/{task['id']}.1"
        eventually(lambda folder=folder: not folder.exists(), "the folder is gone")
        for node in (kitchen, garage, attic):
            with following(node, task, "follow=true&format=ndjson") as follower:
                assert (follower.tail_only, pieces(follower.rest())) == (False, [{"end": "ended"}])


def test_a_follower_resumes_where_it_was_cut(fleet, tmp_path):
    kitchen, _, attic = fleet.nodes.values()
    gate = tmp_path / "gate"
    task = kitchen.submit(
        "sh", "-c", f"echo first; until [ -e {gate} ]; do sleep 0.02; done; echo second", **on("garage")
    )
    with following(attic, task, "follow=true&format=ndjson") as before:
        (piece,) = pieces(before.line())
    gate.touch()
    at = piece["offset"] + len(piece["data"])
    with following(kitchen, task, f"follow=true&format=ndjson&offset={at}") as after:
        assert pieces(after.rest()) == [
            {"stream": "stdout", "offset": 6, "data": "second\n"},
            {"end": "ended"},
        ]


def test_what_is_above_the_cap_is_marked_and_its_end_kept(fleet):
    kitchen, *_ = fleet.nodes.values()
    script = "i=0; while [ $i -lt 20000 ]; do echo 123456789; i=$((i+1)); done; echo the end"
    task = kitchen.submit("sh", "-c", script, **on("garage"))
    kitchen.ended(task)
    text = output(kitchen, task, "stream=stdout")
    assert text.startswith(b"123456789\n" * (MAX_BYTES // 10))
    assert text.endswith(b"123456789\nthe end\n")
    marker = text[MAX_BYTES:].strip().splitlines()[0]
    assert b"output" in marker, marker
    assert b"2000" in marker, marker
    assert len(text) < 20000 * 10
    assert output(kitchen, task, "stream=stdout&tail=1") == b"the end\n"


def test_a_follower_of_a_waiting_task_sees_it_start(fleet):
    kitchen, garage, _ = fleet.nodes.values()
    assert kitchen.request("POST", "/api/v1/nodes/garage/cordon")[0] == 200
    try:
        eventually(lambda: "cordoned" in json.dumps(kitchen.get("/api/v1/nodes/garage")), "kitchen knows")
        task = kitchen.submit("sh", "-c", "echo at last", **on("garage"))
        assert task["state"] == "waiting"
        assert pieces(output(kitchen, task, "format=ndjson")) == [{"end": "not-started"}]
        with following(garage, task) as follower:
            assert kitchen.request("POST", "/api/v1/nodes/garage/resume")[0] == 200
            assert follower.rest() == b"at last\n"
    finally:
        kitchen.request("POST", "/api/v1/nodes/garage/resume")


def test_a_follower_of_a_cancelled_waiting_task_is_told_the_end(fleet):
    kitchen, *_ = fleet.nodes.values()
    task = kitchen.submit("true", placement={"constraints": ["labels.gpu == yes"]})
    with following(kitchen, task, "follow=true&format=ndjson") as follower:
        kitchen.request("DELETE", f"/api/v1/tasks/{task['id']}")
        assert pieces(follower.rest()) == [{"end": "not-started"}]


def test_a_follower_goes_on_with_the_next_attempt(fleet, tmp_path):
    kitchen, _, attic = fleet.nodes.values()
    gate = tmp_path / "gate"
    script = (
        "echo try $EDGEORCH_ATTEMPT; [ $EDGEORCH_ATTEMPT = 3 ] && exit 0; "
        f"until [ -e {gate} ]; do sleep 0.02; done; exit 1"
    )
    task = kitchen.submit(
        "sh",
        "-c",
        script,
        placement={"node": "garage"},
        retry={"max_attempts": 3, "on": ["failed"], "backoff_s": 0.1},
    )
    with following(attic, task) as follower:
        assert follower.line() == b"try 1\n"
        gate.touch()
        assert follower.rest() == b"try 2\ntry 3\n"
    for attempt in (1, 2, 3):
        assert output(attic, task, f"attempt={attempt}") == b"try %d\n" % attempt
    assert output(attic, task) == b"try 3\n"


def running_attempt(node, task):
    """Its number: a busy machine may have refused an earlier one."""

    def newest():
        found = node.get(f"/api/v1/tasks/{task['id']}")
        return found["state"] == "running" and found["attempts"][-1]["number"]

    return eventually(newest, "the task runs")


def test_followers_of_one_attempt_end_with_it(fleet, tmp_path):
    kitchen, *_ = fleet.nodes.values()
    gate = tmp_path / "gate"
    task = kitchen.submit(
        "sh",
        "-c",
        f"echo try; until [ -e {gate} ]; do sleep 0.02; done; exit 1",
        placement={"node": "garage"},
        retry={"max_attempts": 2, "on": ["failed"], "backoff_s": 60},
    )
    number = running_attempt(kitchen, task)
    with following(kitchen, task, f"follow=true&attempt={number}") as follower:
        assert follower.line() == b"try\n"
        gate.touch()
        assert follower.rest() == b""
    kitchen.request("DELETE", f"/api/v1/tasks/{task['id']}")


def test_followers_of_a_spread_task_see_every_node(fleet, tmp_path):
    kitchen, _, attic = fleet.nodes.values()
    gate = tmp_path / "gate"
    script = f"echo $EDGEORCH_NODE; until [ -e {gate} ]; do sleep 0.02; done; echo done"
    task = kitchen.submit("sh", "-c", script, placement={"mode": "all"})
    with following(attic, task) as follower:
        first = {follower.line() for _ in fleet.nodes}
        assert first == {f"{name} | {name}\n".encode() for name in fleet.nodes}
        gate.touch()
        last = set(follower.rest().splitlines())
    assert last == {f"{name} | done".encode() for name in fleet.nodes}


def test_a_follower_that_goes_away_leaves_nothing(fleet, tmp_path):
    kitchen, _, attic = fleet.nodes.values()
    gate = tmp_path / "gate"
    task = kitchen.submit("sh", "-c", f"echo go; until [ -e {gate} ]; do sleep 0.02; done", **on("garage"))
    idle = {node.name: number(node, "edgeorch_wire_open_streams") for node in fleet.nodes.values()}
    before = {node.name: descriptors(node) for node in fleet.nodes.values()}
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            assert stack.enter_context(following(attic, task)).line() == b"go\n"
        for node, more in ((attic, 5), (kitchen, 10)):
            eventually(  # the metrics are a quarter of a second old at most
                lambda node=node, more=more: (
                    number(node, "edgeorch_wire_open_streams") == idle[node.name] + more
                ),
                f"{more} streams more at {node.name}",
            )
    for node in fleet.nodes.values():
        eventually(
            lambda node=node: number(node, "edgeorch_wire_open_streams") <= idle[node.name],
            f"no stream is left at {node.name}",
        )
        eventually(lambda node=node: descriptors(node) <= before[node.name] + 2, "no descriptor is left")
    gate.touch()
    assert kitchen.ended(task)["state"] == "succeeded"


def descriptors(node):
    return len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))


def test_of_a_dead_target_the_origin_has_the_end(mortals):
    kitchen, garage = mortals.nodes.values()
    task = kitchen.submit("sh", "-c", "seq 5; echo oops >&2; exit 4", **on("garage"))
    assert kitchen.ended(task)["exit_code"] == 4
    garage.kill_host()
    mortals.wait_seen(kitchen, "garage", state="dead")
    with following(kitchen, task, "stream=stdout") as follower:
        assert (follower.tail_only, follower.rest()) == (True, b"1\n2\n3\n4\n5\n")
    with following(kitchen, task, "format=ndjson") as follower:
        assert follower.tail_only
        *chunks, end = pieces(follower.rest())
    assert {piece["stream"]: piece["data"] for piece in chunks} == {
        "stdout": "1\n2\n3\n4\n5\n",
        "stderr": "oops\n",
    }
    assert end == {"end": "tail-only"}


def test_a_follower_survives_the_target(mortals):
    """The target dies in the middle; the task goes on elsewhere, and so does the follower."""
    kitchen, garage = mortals.nodes.values()
    script = "echo here $EDGEORCH_ATTEMPT; [ $EDGEORCH_ATTEMPT = 1 ] && sleep 1000; true"
    # A preference would not do: the first sample of the node that started last finds the machine busy.
    assert kitchen.request("POST", "/api/v1/nodes/self/cordon")[0] == 200
    task = kitchen.submit("sh", "-c", script, retry={"backoff_s": 0.1})
    with following(kitchen, task) as follower:
        assert follower.line() == b"here 1\n"
        target = kitchen.get(f"/api/v1/tasks/{task['id']}")["attempts"][0]["node_name"]
        assert target == "garage"
        assert kitchen.request("POST", "/api/v1/nodes/self/resume")[0] == 200
        garage.kill_host()
        assert follower.rest() == b"here 2\n"
    assert kitchen.ended(task)["attempts"][1]["node_name"] == "kitchen"
