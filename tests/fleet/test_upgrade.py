"""``upgrade.yml`` and ``rollback.yml`` under load: no task is lost, no service is ended."""

import contextlib
import http.client
import json
import secrets
import threading
import time

import pytest
from controller import eventually
from docker_images import busybox_image
from next_release import NEXT, copy_of_checkout, edit, next_release, wheel_of

from edgeorch import __version__

PER_S = 5
BROKEN = "0.999.1"
NAMES = ("n1", "n2", "n3")


class Load:
    """Submits five tasks a second, each to the first node that takes it; a task that was taken counts."""

    def __init__(self, controller):
        self.nodes = [controller.node(name) for name in NAMES]
        self.taken, self.refused = [], []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        due, number = time.monotonic(), 0
        while not self._stop.wait(max(0, due - time.monotonic())):
            due, number = due + 1 / PER_S, number + 1
            order = [self.nodes[(number + step) % len(self.nodes)] for step in range(len(self.nodes))]
            if not any(self._submitted(node) for node in order):
                self.refused.append(number)

    def _submitted(self, node):
        spec = {"name": "load", "service": [{"driver": "native", "argv": ["true"]}]}
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, body = node.request(
                "POST", "/api/v1/tasks", spec, **{"Idempotency-Key": secrets.token_hex(8)}
            )
            if status == 202:
                self.taken.append((node, json.loads(body)))
                return True
        return False

    def check(self):
        """Every task that was taken has succeeded, and some node was always there to take one."""
        assert self.refused == []
        assert len(self.taken) > PER_S
        states = [node.ended(task)["state"] for node, task in self.taken]
        assert states == ["succeeded"] * len(states)


class Services:
    """One long native service on each host, and a container on one; they must outlive everything here."""

    def __init__(self, controller):
        self.controller = controller
        self.tasks = {}
        container = {"driver": "container", "image": "busybox:local", "args": ["sleep", "10000"]}
        native = {"driver": "native", "argv": ["sleep", "10000"]}
        for name, service in [*((name, native) for name in NAMES), ("n2", container)]:
            spec = {"name": "long", "service": [service], "placement": {"node": name}}
            node = controller.node(name)
            status, body = node.request("POST", "/api/v1/tasks", spec)
            assert status == 202, body
            self.tasks[name, service["driver"]] = json.loads(body)
        eventually(lambda: all(task["state"] == "running" for task in self.seen()), "all run")
        self.processes = self.running()

    def seen(self):
        for (name, _), task in self.tasks.items():
            yield self.controller.node(name).get(f"/api/v1/tasks/{task['id']}")

    def running(self):
        """The processes themselves, by host."""
        hosts = self.controller.hosts
        return {
            name: hosts.run(name, "pgrep -fx 'sleep 10000'; docker ps --quiet").stdout.split()
            for name in NAMES
        }

    def check(self):
        assert self.running() == self.processes
        for task in self.seen():
            assert (task["state"], len(task["attempts"])) == ("running", 1)

    def end(self):
        for (name, _), task in self.tasks.items():
            node = self.controller.node(name)
            node.request("DELETE", f"/api/v1/tasks/{task['id']}")
            assert node.ended(task)["state"] == "cancelled"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The next release, which adds to the schema, and one that does not start."""
    folder = tmp_path_factory.mktemp("wheels")
    broken = copy_of_checkout(folder / "broken", BROKEN)
    edit(broken, "node.py", "    faulthandler.enable()\n", '    raise StartError("this release is broken")\n')
    return {"next": wheel_of(next_release(folder / "next")), "broken": wheel_of(broken)}


@pytest.fixture(scope="module")
def controller(module_hosts):
    """Three hosts with this release, which each test leaves in force."""
    controller = module_hosts(3, docker=True, installed=True)
    hosts = controller.hosts
    hosts.load_image("n2", busybox_image())
    controller.inventory = hosts.write_inventory(hosts.folder / "open.yml", edgeorch_docker="open")
    controller.play("deploy")
    return controller


def versions(controller):
    return {row["name"]: row["version"] for row in controller.node("n1").get("/api/v1/nodes")["nodes"]}


def runners(controller):
    """Host to the version of its runner, as its node tells."""
    return {
        name: controller.node(name).get("/api/v1/nodes/self")["drivers"]["native"].split()[0]
        for name in NAMES
    }


def all_of(version):
    return dict.fromkeys(NAMES, version)


def all_take_tasks(node):
    """A node that was let in again is seen so by the others with its next sample."""
    eventually(lambda: set(node.sees().values()) == {"alive"}, "each takes tasks again")


@pytest.mark.timeout(1800)
def test_a_rolling_upgrade_and_its_rollback(controller, wheels, figures):
    services = Services(controller)
    upgrade = ("upgrade", "-e", f"edgeorch_wheel={wheels['next']}")

    looked = controller.play(*upgrade, "--check", "--diff")
    assert versions(controller) == all_of(__version__)
    assert "0.999.0-py311" in looked.output

    with Load(controller) as load:
        play = controller.play(*upgrade)
    figures("rolling upgrade of 3 hosts under load", play.seconds)
    assert versions(controller) == all_of(NEXT)
    assert runners(controller) == all_of(__version__)
    all_take_tasks(controller.node("n1"))
    load.check()
    services.check()
    assert staged_before_the_first_switch(play)
    again = controller.play(*upgrade)
    assert again.changed == 0
    assert "Nothing to do" in again.output

    # One that does not start stops at the first host, which is put back; the others were not touched.
    with Load(controller) as load:
        stopped = controller.play("upgrade", "-e", f"edgeorch_wheel={wheels['broken']}", check=False)
    assert stopped.returncode == 2
    (said,) = stopped.failures.values()
    assert "this release is broken" in said
    assert "runs 0.999.0-py311 again; not tried: " in said
    assert versions(controller) == all_of(NEXT)
    all_take_tasks(controller.node("n1"))
    load.check()
    services.check()

    with Load(controller) as load:
        back = controller.play("rollback")
    figures("rollback of 3 hosts under load", back.seconds)
    assert versions(controller) == all_of(__version__)
    load.check()
    services.check()
    services.end()
    assert controller.play("rollback").changed == 0
    listed = controller.node("n1").get("/api/v1/tasks?limit=1000")
    assert listed["unreachable"] == []


def staged_before_the_first_switch(play):
    """Whether every host had the new version before the first node was set aside."""
    before, _, after = play.output.partition("PLAY [Upgrade one host after another]")
    return "upgrade : Set the node aside" in after and "upgrade : Set the node aside" not in before


@pytest.mark.timeout(1800)
def test_hosts_that_are_off_or_busy_hold_up_nobody_and_are_upgraded_later(controller, wheels):
    hosts, node = controller.hosts, controller.node("n1")
    task = node.submit("sleep", "10000", placement={"node": "n2"})
    eventually(lambda: node.get("/api/v1/nodes/n2")["slots_used"] == 1, "it runs on n2")
    assert node.request("POST", "/api/v1/nodes/n1/cordon")[0] == 200
    hosts.stop("n3")
    wish = ("-e", f"edgeorch_wheel={wheels['next']}", "-e", "edgeorch_upgrade_runner=true")

    play = controller.play("upgrade", *wish, "-e", "edgeorch_drain_s=2")
    assert "MISSED: n3" in play.output
    assert "Services still run on n2" in play.output
    hosts.start("n3")
    hosts.run("n3", "systemctl start docker")
    # Each takes what it took before; n3 with the release before, among nodes of the next.
    before = {"n1": "cordoned", "n2": "alive", "n3": "alive"}
    eventually(lambda: node.sees() == before, "as before")
    assert versions(controller) == {"n1": NEXT, "n2": NEXT, "n3": __version__}
    assert runners(controller) == {"n1": NEXT, "n2": __version__, "n3": __version__}
    assert node.get(f"/api/v1/tasks/{task['id']}")["state"] == "running"
    assert node.ended(node.submit("true", placement={"node": "n3"}))["state"] == "succeeded"

    assert node.request("POST", "/api/v1/nodes/n1/resume")[0] == 200
    assert node.request("DELETE", f"/api/v1/tasks/{task['id']}")[0] == 202
    controller.play("upgrade", *wish)
    assert runners(controller) == all_of(NEXT)

    # A run that was cut off after the switch is carried on by the next one.
    hosts.run(
        "n3",
        'sed -i \'s/"finished": true/"finished": false/\' /opt/edgeorch/upgrade.json && '
        "EDGEORCH_TOKEN=$(cat) /usr/local/bin/edgeorch cordon",
        stdin=controller.token(),
    )
    assert controller.play("upgrade", *wish).changed > 0
    all_take_tasks(node)
    assert controller.play("upgrade", *wish).changed == 0
