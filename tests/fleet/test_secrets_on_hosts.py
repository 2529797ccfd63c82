"""Secrets and the audit trail with the real units: in memory, through restarts, in no other place."""

import hashlib
import json
import secrets

import pytest
from controller import eventually
from docker_images import busybox_image

VALUE = f"correct horse {secrets.token_hex(16)} battery"
DIGEST = hashlib.sha256(VALUE.encode()).hexdigest()
NODE, RUNNER = "/run/edgeorch/container-secrets", "/run/edgeorch-runner/secrets"


@pytest.fixture
def host(new_hosts):
    """A controller, and its host n1 that runs containers."""
    controller = new_hosts(1, docker=True, installed=True)
    controller.hosts.load_image("n1", busybox_image())
    controller.play("deploy", "-e", json.dumps({"edgeorch_docker": "guarded"}))
    return controller


def test_secrets_stay_in_memory_and_services_keep_them_while_the_node_restarts(host):
    hosts, node = host.hosts, host.node("n1")

    def run(command, **how):
        return hosts.run("n1", command, **how).stdout

    def submit(service):
        spec = {
            "name": "s",
            "service": [service],
            "secrets": {"password": VALUE},
            "retry": {"max_attempts": 1},
        }
        status, body = node.request("POST", "/api/v1/tasks", spec)
        assert status == 202, body
        return json.loads(body)

    def output(task):
        return node.request("GET", f"/api/v1/tasks/{task['id']}/output?stream=stdout")[1].decode()

    script = "stat -L -c '%a %U' secrets/password; sha256sum secrets/password; sleep 1000"
    native = submit({"driver": "native", "argv": ["sh", "-c", script]})
    script = "cat /run/secrets/password | head -c 7; sleep 1000"
    container = submit({"driver": "container", "image": "busybox:local", "args": ["sh", "-c", script]})
    said = eventually(lambda: (text := output(native)).count("\n") == 2 and text, "the service has read it")
    assert said.splitlines()[0] == "600 edgeorch-task"
    assert DIGEST in said
    eventually(lambda: output(container) == VALUE[:7], "the container has read it")
    kept = f"find {NODE} {RUNNER} -type f -exec stat -c '%a %U %n' {{}} + ; stat -f -c %T {NODE} {RUNNER}"
    before = run(kept).split()
    assert (before[0:2], before[3:5]) == (["600", "edgeorch"], ["600", "edgeorch-task"])
    assert before[6:] == ["tmpfs", "tmpfs"]

    # A restart, and a stop with a start as an upgrade does it, leave services and files alone.
    for command in ("systemctl restart edgeorch", "systemctl stop edgeorch; systemctl start edgeorch"):
        run(command)
        assert run(kept).split() == before
        assert {node.get(f"/api/v1/tasks/{task['id']}")["state"] for task in (native, container)} == {
            "running"
        }

    for where in (
        "grep -rlFf - /var/lib/edgeorch /etc/edgeorch /var/log /tmp",
        "cat > /root/pattern; journalctl --all -o export | grep -aFf /root/pattern",
        "docker inspect $(docker ps -aq) | grep -Ff /root/pattern",
        "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | grep -aFf /root/pattern",
    ):
        assert run(where, stdin=VALUE, check=False) == ""

    for task in (native, container):
        node.request("DELETE", f"/api/v1/tasks/{task['id']}")
        assert node.ended(task)["state"] == "cancelled"
    eventually(lambda: run(f"find {NODE} {RUNNER} -type f") == "", "nothing is left in memory")

    # The journal can be searched for who did what; the API says the same.
    lines = run("journalctl -u edgeorch EDGEORCH_AUDIT=cancel -o json").splitlines()
    found = [json.loads(line) for line in lines]
    assert [one["EDGEORCH_SUBJECT"] for one in found] == [native["id"], container["id"]]
    assert {one["EDGEORCH_ROLE"] for one in found} == {"admin"}
    records = node.get("/api/v1/audit?limit=4")["records"]
    assert [one["action"] for one in records] == ["cancel", "cancel", "submit", "submit"]
    assert {one["address"] for one in records} == {found[0]["EDGEORCH_ADDRESS"]}
    doctor = json.loads(run("sudo -u edgeorch edgeorch doctor --json || true", check=False) or "[]")
    assert not [line for line in doctor if line["check"] == "secrets"]
