"""Secrets with real processes, a real runner and a real Engine: who gets them, and where they never are."""

import base64
import contextlib
import hashlib
import json
import os
import secrets
import stat
import tempfile
from pathlib import Path

import pytest
from docker_images import BUSYBOX, busybox_image, docker
from real_fleet import RealFleet, eventually
from real_runner import Runner

from edgeorch import cli
from edgeorch.runner import protocol
from edgeorch.runner.landlock import Landlock
from edgeorch.secret import Secret

pytestmark = pytest.mark.timeout(180)

VALUE = f"correct horse {secrets.token_hex(16)} battery"
DIGEST = hashlib.sha256(VALUE.encode()).hexdigest()
_RAW = VALUE.encode()
FORMS = [_RAW, _RAW.hex().encode(), *(base64.b64encode(_RAW[n:-3])[:-4] for n in range(3))]
"""The secret as it would stand in a file, whoever had written it there."""
NO_LANDLOCK = Landlock([Path("/tmp")]).missing


@pytest.fixture
def memory():
    """A folder in memory, short enough for the path of a socket."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def of_processes():
    """What everybody on this machine can read of the processes."""
    pids = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid / name for pid in pids for name in ("cmdline", "environ")]


def holding(paths):
    """Those that hold the secret."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            found += [str(path) for form in FORMS if form in data]
    return found


# The runner


class Services:
    """Starts native services with secrets."""

    def __init__(self, runner):
        self.client = runner.connect()
        runner.clients = [*getattr(runner, "clients", ()), self.client]
        self.welcome = self.client.receive()
        self.said = []

    def start(self, key, *argv, **given):
        given = {name: Secret(value.encode()) for name, value in given.items()}
        self.client.send(protocol.Start(id=1, key=key, argv=argv, env={}, output_max=10_000, secrets=given))
        return self.until(protocol.Started, protocol.Failed)

    def until(self, *kinds):
        while not isinstance(message := self.client.receive(), kinds):
            self.said.append(message)
        return message

    def end(self, key):
        while not (ended := [one for one in self.said if getattr(one, "key", "") == key]):
            self.said.append(self.client.receive())
        return ended[0].ended


def end(runner):
    for client in runner.clients:
        client.sock.close()
    runner.end()


@contextlib.contextmanager
def runner_in(folder, *options):
    runner = Runner(folder, *options)
    try:
        yield runner
    finally:
        end(runner)


def test_a_native_service_finds_its_secrets_below_its_folder_and_they_go_with_it(memory):
    with runner_in(memory) as runner:
        services = Services(runner)
        assert services.welcome.no_secrets == ""
        script = 'stat -L -c "%a %u" secrets secrets/one; cat secrets/one "$EDGEORCH_SECRETS/two"; env; cat'
        fifo = memory / "fifo"
        os.mkfifo(fifo)
        started = services.start("t.1", "sh", "-c", f"{script} {fifo}", one="first\n", two=VALUE)
        folder = Path(started.folder)
        files = memory / "secrets" / "t.1"
        assert {path.name for path in files.iterdir()} == {"one", "two"}
        assert stat.S_IMODE((files / "one").stat().st_mode) == 0o600
        assert holding(of_processes()) == []
        fifo.write_text("")
        assert services.end("t.1").exit_code == 0
        said = (folder / "stdout").read_text()
        assert said.startswith(f"700 {os.getuid()}\n600 {os.getuid()}\nfirst\n{VALUE}")
        assert f"EDGEORCH_SECRETS={folder}/work/secrets" in said
        assert not files.exists()
        services.client.send(protocol.Forget(id=2, key="t.1"))
        services.until(protocol.Done)
        eventually(lambda: not (folder / "work").exists(), "the work folder is gone")


def test_a_service_that_cannot_be_started_leaves_no_secrets(memory):
    with runner_in(memory) as runner:
        failed = Services(runner).start("t.1", "no-such-program", one=VALUE)
        assert failed.reason == "no_program"
        assert list((memory / "secrets").iterdir()) == []
        assert list((memory / "tasks").iterdir()) == []


def test_what_a_killed_runner_leaves_is_swept_by_the_next(memory):
    runner = Runner(memory)
    Services(runner).start("t.1", "sleep", "1000", one=VALUE)
    runner.process.kill()
    end(runner)
    assert (memory / "secrets" / "t.1" / "one").exists()
    with runner_in(memory) as again:
        services = Services(again)
        services.client.send(protocol.List(id=1))
        assert services.until(protocol.Listed).attempts[0].ended.cause == "node_lost"
        assert list((memory / "secrets").iterdir()) == []


def test_a_runner_whose_folder_is_on_a_disk_says_so_and_writes_nothing(tmp_path):
    with runner_in(tmp_path) as runner:
        services = Services(runner)
        if not services.welcome.no_secrets:
            pytest.skip("pytest's folder is in memory")
        assert str(tmp_path / "secrets") in services.welcome.no_secrets
        failed = services.start("t.1", "true", one=VALUE)
        assert failed.reason == "driver_unavailable"
        assert "in memory only" in failed.detail
        assert not (tmp_path / "secrets").exists()


@pytest.mark.skipif(bool(NO_LANDLOCK), reason=NO_LANDLOCK or "there is Landlock")
def test_landlock_keeps_the_secrets_of_one_service_from_another(memory):
    with runner_in(memory, "--close", str(memory)) as runner:
        services = Services(runner)
        services.start("t.1", "sleep", "1000", one=VALUE)
        services.start("t.2", "sh", "-c", f"cat secrets/own && ! cat {memory}/secrets/t.1/one", own="own")
        assert services.end("t.2").exit_code == 0
        assert (memory / "tasks/t.2/stdout").read_text() == "own"


# A fleet


@pytest.fixture
def fleet(tmp_path, memory):
    made = RealFleet(tmp_path, "kitchen", "garage", "attic")
    for node in made.nodes.values():
        node.run_dir = memory / node.name
    yield made
    made.close()


QUIET = '[log]\nlevel="debug"\n'


def start(fleet, *names):
    nodes = [fleet.nodes[name].start(QUIET) for name in names or fleet.nodes]
    for node in nodes:
        fleet.wait_seen(node, *(other.name for other in nodes))
    return nodes


def leaks(fleet):
    """Files of the nodes, and of processes, that hold the secret."""
    # Folders of attempts go while we look, which stops rglob.
    found = (Path(folder, name) for folder, _, names in os.walk(fleet.folder) for name in names)
    files = (path for path in found if path.is_file() and not path.is_symlink())
    return holding([*files, *of_processes()])


def answers(fleet, task):
    """What the API says of a task, at every node that serves."""
    paths = [f"/api/v1/tasks/{task['id']}", "/api/v1/tasks", "/api/v1/nodes", "/openapi.json", "/metrics"]
    paths.append(f"/api/v1/tasks/{task['id']}/events")
    return b"".join(node.request("GET", path)[1] for node in fleet.nodes.values() for path in paths)


def kept(memory):
    return [path for path in memory.rglob("*") if path.is_file()]


def test_a_secret_is_found_nowhere_after_a_retry_a_crash_and_a_restart(fleet, memory):
    kitchen, garage, attic = start(fleet)
    script = f"sha256sum secrets/password; while ! test -e {fleet.folder}/go; do sleep 0.1; done"
    spec = {
        "name": "t",
        "service": [{"driver": "native", "argv": ["sh", "-c", script]}],
        "placement": {"constraints": ["name != kitchen"]},
        "secrets": {"password": VALUE, "blob": {"base64": "AAEC/w=="}},
    }
    ranking = kitchen.request("POST", "/api/v1/tasks?dry_run=true", spec)[1]
    assert b"ranking" in ranking
    assert VALUE.encode() not in ranking
    once = {"Idempotency-Key": "one"}
    status, body = kitchen.request("POST", "/api/v1/tasks", spec, **once)
    assert status == 202
    task = json.loads(body)
    assert task["spec"]["secrets"] == {"password": None, "blob": None}
    assert json.loads(kitchen.request("POST", "/api/v1/tasks", spec, **once)[1])["id"] == task["id"]
    other = spec | {"secrets": spec["secrets"] | {"password": "guess"}}
    assert kitchen.request("POST", "/api/v1/tasks", other, **once)[0] == 422

    def placed(number):
        now = kitchen.get(f"/api/v1/tasks/{task['id']}")
        if now["state"] == "running" and len(now["attempts"]) == number:
            return fleet.nodes[now["attempts"][-1]["node_name"]]
        return None

    first = eventually(lambda: placed(1), "it runs")
    second = attic if first is garage else garage
    assert {path.name: path.read_bytes() for path in kept(first.run_dir)} == {
        "password": VALUE.encode(),
        "blob": b"\x00\x01\x02\xff",
    }
    # The origin and the target crash and come back; the service has its files all the time.
    kitchen.kill()
    first.kill()
    assert leaks(fleet) == []
    start(fleet, kitchen.name, first.name)
    eventually(lambda: placed(1), "it still runs")
    assert len(kept(first.run_dir)) == 2
    first.kill_host()
    assert eventually(lambda: placed(2), "it runs elsewhere") is second
    assert leaks(fleet) == []
    start(fleet, first.name)
    assert kept(first.run_dir) == []
    (fleet.folder / "go").touch()
    assert kitchen.ended(task)["state"] == "succeeded"
    output = kitchen.request("GET", f"/api/v1/tasks/{task['id']}/output")[1].decode()
    assert DIGEST in output
    said = answers(fleet, task)
    assert not [form for form in FORMS if form in said]
    eventually(lambda: not kept(memory), "nothing is left in memory")
    for node in fleet.nodes.values():
        assert node.stop() == 0
    assert leaks(fleet) == []


def test_the_command_line_hands_over_a_file_and_a_variable(fleet, tmp_path, monkeypatch, capfdbinary):
    (kitchen,) = start(fleet, "kitchen")
    (tmp_path / "file").write_text(VALUE)
    monkeypatch.setenv("TOKEN", VALUE)
    given = (
        "--url",
        f"http://{kitchen.host}:{fleet.api}",
        "--secret",
        f"a={tmp_path}/file",
        "--secret",
        "TOKEN",
    )
    assert cli.main(["run", "-q", *given, "--", "sha256sum", "secrets/a", "secrets/TOKEN"]) == 0
    out = capfdbinary.readouterr().out.decode()
    assert [line.split()[0] for line in out.splitlines()] == [DIGEST] * 2


def test_a_node_whose_run_folder_is_on_a_disk_refuses_by_name(fleet):
    kitchen, garage = fleet.nodes["kitchen"], fleet.nodes["garage"]
    kitchen.run_dir = kitchen.folder / "run"
    start(fleet, "kitchen", "garage")
    spec = {"placement": {"node": "kitchen"}, "secrets": {"password": VALUE}}
    task = garage.submit("true", **spec)
    reason = eventually(
        lambda: (now := garage.get(f"/api/v1/tasks/{task['id']}"))["reason"] and now["reason"], "it waits"
    )
    assert f"kitchen cannot take secrets: secrets are kept in memory only, and {kitchen.run_dir}" in reason
    assert garage.ended(garage.submit("true", secrets={"password": VALUE}))["state"] == "succeeded"
    assert leaks(fleet) == []


# Containers


@pytest.mark.docker
@pytest.mark.parametrize("user", ["0", "65534"])
def test_a_container_finds_its_secrets_and_nobody_else_does(fleet, memory, user):
    busybox_image()
    (kitchen,) = start(fleet, "kitchen")
    script = (
        'cd "$EDGEORCH_SECRETS"; cat password | head -c 7; echo x > password || echo read-only; sleep 1000'
    )
    options = ["--network", "none", "--user", user]
    service = {"driver": "container", "image": BUSYBOX, "options": options, "args": ["sh", "-c", script]}
    spec = {"name": "t", "service": [service], "secrets": {"password": VALUE}, "retry": {"max_attempts": 1}}
    task = json.loads(kitchen.request("POST", "/api/v1/tasks", spec)[1])
    path = f"/api/v1/tasks/{task['id']}"
    eventually(lambda: b"read-only" in kitchen.request("GET", f"{path}/output")[1], "it has read its secret")
    (file,) = (memory / "kitchen" / "container-secrets").rglob("password")
    assert stat.S_IMODE(file.stat().st_mode) == (0o600 if user == "0" else 0o444)
    assert stat.S_IMODE(file.parent.stat().st_mode) == stat.S_IMODE(file.parents[1].stat().st_mode) == 0o700
    (container,) = docker("ps", "-q", "--filter", f"label=edgeorch.task={task['id']}").stdout.split()
    inspected = docker("inspect", container).stdout
    assert not [form for form in FORMS if form.decode() in inspected]
    assert '"Destination": "/run/secrets/password"' in inspected
    # A restart of the node leaves the container and its files alone.
    kitchen.kill()
    kitchen.start(QUIET)
    assert file.read_text() == VALUE
    eventually(lambda: kitchen.get(path)["state"] == "running", "it was taken up again")
    assert leaks(fleet) == []
    kitchen.request("DELETE", path)
    assert kitchen.ended(task)["state"] == "cancelled"
    assert kitchen.request("GET", f"{path}/output?stream=stdout")[1] == f"{VALUE[:7]}read-only\n".encode()
    eventually(lambda: not kept(memory), "nothing is left in memory")


@pytest.mark.docker
def test_what_a_killed_node_leaves_of_containers_that_are_gone_is_swept(fleet, memory):
    busybox_image()
    (kitchen,) = start(fleet, "kitchen")
    service = {
        "driver": "container",
        "image": BUSYBOX,
        "options": ["--network", "none"],
        "args": ["sleep", "99"],
    }
    spec = {"name": "t", "service": [service], "secrets": {"password": VALUE}, "retry": {"max_attempts": 1}}
    task = json.loads(kitchen.request("POST", "/api/v1/tasks", spec)[1])
    eventually(lambda: kitchen.get(f"/api/v1/tasks/{task['id']}")["state"] == "running", "it runs")
    kitchen.kill()
    docker("rm", "-f", *docker("ps", "-q", "--filter", f"label=edgeorch.task={task['id']}").stdout.split())
    assert len(kept(memory)) == 1
    kitchen.start(QUIET)
    assert kept(memory) == []
    assert kitchen.ended(task)["state"] == "lost"
