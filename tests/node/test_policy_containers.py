"""The policy of a real node with a real Docker Engine: what it lets through and what the Engine then gets."""

import contextlib
import json

import pytest
from docker_images import BUSYBOX, busybox_image, docker, inspect
from real_fleet import RealFleet, eventually

pytestmark = pytest.mark.docker

SETTINGS = """
images=["busybox"]
max_memory=67108864
max_cpus=0.5
capabilities=["SYS_TIME"]
devices=["/dev/null"]
namespaces=["uts"]
"""
LISTED = (
    *("--cap-add", "cap_sys_time", "--device", "/dev/null:/dev/nothing", "--uts", "host"),
    *("--network", "none", "--stop-timeout", "0"),
)


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    busybox_image()
    fleet = RealFleet(tmp_path_factory.mktemp("fleet"), "kitchen")
    with contextlib.closing(fleet):
        node = fleet.nodes["kitchen"].start(SETTINGS)
        eventually(lambda: "container" in node.get("/api/v1/nodes/self")["drivers"], "the Engine is there")
        yield node


def spec(*args, image=BUSYBOX, options=()):
    service = {"driver": "container", "image": image, "options": list(options), "args": list(args)}
    return {"name": "x", "service": [service]}


def test_what_is_listed_runs_within_the_limits(kitchen):
    status, body = kitchen.request("POST", "/api/v1/tasks", spec("sleep", "60", options=LISTED))
    assert status == 202, body
    task = json.loads(body)

    def running():
        return docker("ps", "-q", "--filter", f"label=edgeorch.task={task['id']}").stdout.split()

    (ref,) = eventually(running, "it runs")
    host = inspect(ref)[0]["HostConfig"]
    assert (host["Memory"], host["NanoCpus"]) == (64 << 20, 500_000_000)
    assert (host["CapAdd"], host["UTSMode"], host["Privileged"]) == (["cap_sys_time"], "host", False)
    assert [device["PathOnHost"] for device in host["Devices"]] == ["/dev/null"]
    assert kitchen.request("DELETE", f"/api/v1/tasks/{task['id']}")[0] == 202
    assert kitchen.ended(task)["state"] == "cancelled"


def test_the_engine_kills_what_outgrows_a_limit_that_the_task_never_named(kitchen):
    grow = spec("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1", options=["--network", "none"])
    status, body = kitchen.request("POST", "/api/v1/tasks", grow)
    assert status == 202, body
    task = kitchen.ended(json.loads(body))
    assert (task["state"], task["exit_code"]) == ("failed", 137), task


@pytest.mark.parametrize(
    ("key", "image", "options"),
    [
        ("images", "hello-world", []),
        ("images", f"{BUSYBOX}@sha256:{'0' * 64}x", []),
        ("capabilities", BUSYBOX, ["--cap-add", "NET_ADMIN"]),
        ("devices", BUSYBOX, ["--device", "/dev/zero"]),
        ("namespaces", BUSYBOX, ["--network=bridge", "--network=host"]),
        ("max_memory", BUSYBOX, ["-m", "65m"]),
        ("max_memory", BUSYBOX, ["-m", "64m", "--memory-swap", "-1"]),
        ("max_cpus", BUSYBOX, ["--cpu-quota", "60000"]),
        ("host_paths", BUSYBOX, ["-v", "/etc:/x"]),
        ("volumes", BUSYBOX, ["-v", "others:/x"]),
        ("networks", BUSYBOX, ["--network", "others"]),
        ("privileged", BUSYBOX, ["--privileged"]),
    ],
)
def test_what_is_not_listed_is_refused_by_its_key(kitchen, key, image, options):
    status, body = kitchen.request("POST", "/api/v1/tasks", spec("true", image=image, options=options))
    assert (status, json.loads(body)["key"]) == (403, f"policy.{key}")


def test_an_image_by_its_id_is_not_one_of_that_name(kitchen):
    ref = docker("image", "inspect", "--format", "{{.Id}}", BUSYBOX).stdout.strip()
    for image in (ref, ref.removeprefix("sha256:")[:12]):
        status, body = kitchen.request("POST", "/api/v1/tasks", spec("true", image=image))
        assert (status, json.loads(body)["key"]) == (403, "policy.images")
