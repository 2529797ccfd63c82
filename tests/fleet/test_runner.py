"""Native services on deployed hosts: what they cannot touch, what they can, and what limits them."""

import json

import pytest
from controller import eventually

PYTHON = "/usr/bin/python3"
ABI = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))"
"""Version of the kernel's Landlock, -1 where it has none."""
TRIES = """
import ctypes, json, os, sys
node, runner, other = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), name)

ATTACH, NEW_USER = 16, 0x10000000
tries = {
    "node": {
        "read node.key": lambda: open("/etc/edgeorch/pki/node.key").read(),
        "read tokens.toml": lambda: open("/etc/edgeorch/tokens.toml").read(),
        "list /etc/edgeorch": lambda: os.listdir("/etc/edgeorch"),
        "read edgeorch.db": lambda: open("/var/lib/edgeorch/edgeorch.db", "rb").read(),
        "write edgeorch.db": lambda: open("/var/lib/edgeorch/edgeorch.db", "ab"),
        "put a file beside it": lambda: open("/var/lib/edgeorch/mine", "w"),
        "signal the node": lambda: os.kill(node, 0),
        "trace the node": lambda: call("ptrace", ATTACH, node, 0, 0),
        "read the node's memory": lambda: open(f"/proc/{node}/mem", "rb"),
        "read the node's environment": lambda: open(f"/proc/{node}/environ", "rb").read(),
        "trace the runner": lambda: call("ptrace", ATTACH, runner, 0, 0),
        "read the runner's memory": lambda: open(f"/proc/{runner}/mem", "rb"),
    },
    "machine": {
        "become root": lambda: os.setuid(0),
        "write /usr": lambda: open("/usr/mine", "w"),
        "read the kernel's log": lambda: open("/dev/kmsg").read(1),
        "make a user namespace": lambda: call("unshare", NEW_USER),
    },
    "others": {
        "read another task's file": lambda: open(other + "/secret").read(),
        "write another task's file": lambda: open(other + "/secret", "a"),
        "remove another task's file": lambda: os.unlink(other + "/secret"),
        "remove the runner's socket": lambda: os.unlink("/run/edgeorch-runner/runner.sock"),
    },
    "signals": {"signal the runner": lambda: os.kill(runner, 0)},
}

def reached(tries):
    for name, attempt in tries.items():
        try:
            attempt()
        except OSError:
            continue
        yield name

print(json.dumps({group: list(reached(members)) for group, members in tries.items()}))
"""
USES = """
import os, shutil, subprocess, tempfile
os.makedirs("a/b")
open("a/b/c", "w").write("x")
shutil.copytree("a", "d")
os.rename("d/b/c", "e")
with tempfile.TemporaryFile() as file:
    file.write(b"x")
assert os.listdir("/") and open("/etc/os-release").read()
open("/dev/null", "w").write("x")
assert os.urandom(1)
subprocess.run(["sh", "-c", "ls /usr > list; kill $$"])
"""


@pytest.fixture
def node(fleet):
    """The node on n1; ``submit`` lets it run there."""
    return fleet.node("n1")


def submit(node, *argv, **fields):
    return node.submit(*argv, placement={"node": node.name}, **fields)


def run(node, *argv, **fields):
    """The ended task, and what it wrote to stdout and stderr."""
    task = node.ended(submit(node, *argv, **fields))
    status, said = node.request("GET", f"/api/v1/tasks/{task['id']}/output?stream=both")
    assert status == 200, said
    return task, said.decode()


def main_pid(node, unit):
    return node.hosts.run(node.name, "systemctl", "show", "--value", "-p", "MainPID", unit).stdout.strip()


def landlock(node):
    return int(node.hosts.run(node.name, PYTHON, "-c", ABI).stdout)


@pytest.fixture
def other(node):
    """The work folder of another task that runs, with a secret in it."""
    task = submit(node, "sh", "-c", "echo x > secret; exec sleep 1000")
    work = f"/var/lib/edgeorch/tasks/{task['id']}.1/work"
    ready = ("test", "-s", f"{work}/secret")
    eventually(lambda: node.hosts.run(node.name, *ready, check=False).returncode == 0, "the secret")
    yield work
    node.request("DELETE", f"/api/v1/tasks/{task['id']}")
    assert node.ended(task)["state"] == "cancelled"


def test_a_native_service_cannot_touch_the_node_or_other_services(node, other):
    pids = [main_pid(node, unit) for unit in ("edgeorch", "edgeorch-runner")]
    task, said = run(node, PYTHON, "-c", TRIES, *pids, other)
    assert task["state"] == "succeeded", said
    reached = json.loads(said)
    abi = landlock(node)
    assert reached["node"] == reached["machine"] == []
    assert not reached["others"] or abi < 2
    assert not reached["signals"] or abi < 6


def test_a_node_says_what_keeps_services_apart_and_what_limits_them(node):
    said = node.get("/api/v1/nodes/self")
    assert said["task_isolation"] == ("landlock" if landlock(node) >= 2 else "none")
    unit = node.hosts.run(
        node.name, "systemctl", "show", "-P", "ControlGroup", "edgeorch-runner"
    ).stdout.strip()
    offered = node.hosts.run(node.name, f"cat /sys/fs/cgroup{unit}/cgroup.controllers || true").stdout.split()
    memory = "cgroup:memory" if "memory" in offered else "rlimit:memory"
    cpus = ["cgroup:cpus"] if "cpu" in offered else []
    assert sorted(said["limits"]) == sorted([memory, *cpus, "rlimit:processes"])


def test_a_service_may_do_what_an_ordinary_program_does(node):
    task, said = run(node, PYTHON, "-c", USES)
    assert task["state"] == "succeeded", said


def test_a_program_whose_file_asks_for_a_capability_starts(node):
    """As ping does: the kernel refuses to start it where the capability is ruled out."""
    made = "install -m 755 /bin/true /usr/local/bin/asks && setcap cap_net_raw+ep /usr/local/bin/asks"
    node.hosts.run(node.name, made)
    try:
        task, said = run(node, "asks")
        assert task["state"] == "succeeded", said
    finally:
        node.hosts.run(node.name, "rm", "/usr/local/bin/asks")


def test_a_service_gets_no_more_memory_than_it_asks_for(node):
    argv = (PYTHON, "-c", "bytearray(400 << 20)")
    task, said = run(node, *argv, resources={"memory": 200 << 20})
    assert task["state"] == "failed", said
    assert "MemoryError" in said or "memory" in task["reason"]
    task, said = run(node, *argv)
    assert task["state"] == "succeeded", said


def test_the_runner_outlives_a_restart_of_the_node_and_nothing_outlives_the_runner(node):
    task = submit(node, "sleep", "1000", retry={"max_attempts": 1})
    eventually(lambda: node.get(f"/api/v1/tasks/{task['id']}")["state"] == "running", "it runs")
    before = main_pid(node, "edgeorch-runner")
    node.hosts.run(node.name, "systemctl", "restart", "edgeorch")
    eventually(lambda: node.get("/readyz"), "the node is back")
    assert main_pid(node, "edgeorch-runner") == before
    assert node.get(f"/api/v1/tasks/{task['id']}")["state"] == "running"
    node.hosts.run(node.name, "systemctl", "kill", "-s", "KILL", "edgeorch-runner")
    assert node.ended(task)["state"] == "lost"
    assert node.hosts.run(node.name, "pgrep", "-u", "edgeorch-task", "sleep", check=False).returncode == 1
