"""The units on real hosts: what systemd and its journal tell, and how a node comes back."""

import contextlib
import json
import re

import pytest
from controller import eventually

DROP_IN = "/etc/systemd/system/edgeorch.service.d/test.conf"
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
CONFIG = "/etc/edgeorch/edgeorch.toml"
ROOTS_FILES = """\
cd /var/lib/edgeorch/tasks/{task}.1/work
mkdir git deep; echo x >git/object; chmod 444 git/object; touch deep/file go
"""
SWEEP = """\
runuser -u edgeorch -- /opt/edgeorch/current/bin/python -c '
import trio
from pathlib import Path
from edgeorch.output import sweep
trio.run(lambda: sweep(Path("/var/lib/edgeorch/tasks"), keep=(), max_bytes=1 << 40))'
"""


class Unit:
    """edgeorch.service on a host."""

    def __init__(self, fleet, name):
        self.fleet, self.name = fleet, name
        self.node = fleet.node(name)

    def run(self, line, **how):
        return self.fleet.hosts.run(self.name, line, **how)

    def show(self, key):
        return self.run(f"systemctl show --value -p {key} edgeorch").stdout.strip()

    def status(self):
        """The line of `systemctl status`."""
        said = self.run("systemctl status --no-pager --full edgeorch", check=False).stdout
        return re.search(r'^ *Status: "(.*)"$', said, re.MULTILINE)[1]

    def until_status(self, part):
        eventually(lambda: part in self.status(), f"{self.name} says {part!r}")

    def story(self, task):
        """(event, attempt, peer) of each line that the journal has for a task."""
        said = self.run(f"journalctl -o json EDGEORCH_TASK={task['id']}").stdout
        lines = [json.loads(line) for line in said.splitlines()]
        words = (line["MESSAGE"].split(" task=")[0].split(" peer=")[0].split(" name=")[0] for line in lines)
        found = zip(words, lines, strict=True)
        return [(word, line.get("EDGEORCH_ATTEMPT"), line.get("EDGEORCH_PEER")) for word, line in found]

    def serves(self):
        """Wait until it is ready again."""
        eventually(lambda: self.node.request("GET", "/readyz")[0] == 200, f"{self.name} is ready")


@pytest.fixture
def n1(fleet):
    return Unit(fleet, "n1")


@pytest.fixture
def n2(fleet):
    return Unit(fleet, "n2")


@contextlib.contextmanager
def changed(unit, path, change):
    """A file of the host is another one for a while; the node is as before when the block is left."""
    unit.run(f"mkdir -p {path.rpartition('/')[0]}; [ ! -e {path} ] || cp -a {path} {path}.before")
    try:
        unit.run(change)
        yield
    finally:
        unit.run(f"if [ -e {path}.before ]; then mv {path}.before {path}; else rm -f {path}; fi")
        unit.run("systemctl daemon-reload; systemctl restart edgeorch")
        unit.serves()


def test_systemctl_status_tells_how_the_node_is(n1):
    n1.until_status(" alive; 0 running, 0 waiting; score ")
    assert re.fullmatch(
        r"ready: \d peers? alive; 0 running, 0 waiting; score [\d.]+; certificate 39[67] d"
        r"(; clock not synchronised)?",
        n1.status(),
    )


def test_the_unit_cannot_write_its_configuration(n1):
    inside = f"nsenter --mount --target {n1.show('MainPID')}"
    for user in ("", "runuser -u edgeorch --"):
        done = n1.run(f"{inside} {user} touch /etc/edgeorch/written", check=False)
        assert "Read-only file system" in done.stderr
    assert n1.run(f"{inside} touch /usr/written", check=False).returncode != 0
    n1.run(f"{inside} runuser -u edgeorch -- touch /var/lib/edgeorch/written /run/edgeorch/written")
    n1.run("rm /var/lib/edgeorch/written /run/edgeorch/written")


def test_a_killed_node_is_back_within_its_lease_and_its_service_goes_on(n1):
    task = n1.node.submit("sleep", "600", placement={"node": n1.node.get("/api/v1/nodes/self")["id"]})
    eventually(lambda: n1.node.get(f"/api/v1/tasks/{task['id']}")["state"] == "running", "it runs")
    before = n1.run("pgrep -u edgeorch-task -x sleep").stdout
    restarts = int(n1.show("NRestarts"))
    n1.run(f"kill -9 {n1.show('MainPID')}")
    eventually(lambda: int(n1.show("NRestarts")) == restarts + 1, "systemd starts it again")
    n1.serves()
    assert n1.run("pgrep -u edgeorch-task -x sleep").stdout == before
    found = n1.node.get(f"/api/v1/tasks/{task['id']}")
    assert (found["state"], len(found["attempts"])) == ("running", 1)
    n1.node.request("DELETE", f"/api/v1/tasks/{task['id']}")
    assert n1.node.ended(task)["state"] == "cancelled"


def test_a_loop_that_hangs_is_restarted_by_the_watchdog(n1):
    with changed(n1, DROP_IN, f"printf '[Service]\\nWatchdogSec=3s\\n' >{DROP_IN}; systemctl daemon-reload"):
        n1.run("systemctl restart edgeorch")
        n1.serves()
        restarts = int(n1.show("NRestarts"))
        n1.run(f"kill -STOP {n1.show('MainPID')}")
        eventually(lambda: int(n1.show("NRestarts")) > restarts, "the watchdog bites")
        n1.serves()
    assert "Watchdog timeout" in n1.run("journalctl -u edgeorch -n 100 --no-pager").stdout


def test_only_a_bad_configuration_stays_down_and_says_why(n1):
    with changed(n1, CONFIG, f"echo '[exekutor]' >>{CONFIG}"):
        assert n1.run("systemctl restart edgeorch", check=False).returncode != 0
        assert (n1.show("ExecMainStatus"), n1.show("ActiveState")) == ("78", "failed")
        assert "unknown section: 'exekutor'" in n1.status()
        assert "did you mean 'executor'?" in n1.status()


def test_a_wrong_clock_is_told_by_both_sides_and_heals_by_itself(n1, n2):
    clock = "/run/edgeorch-clock"
    environment = f"LD_PRELOAD={FAKETIME} FAKETIME_TIMESTAMP_FILE={clock} FAKETIME_NO_CACHE=1 "
    environment += "FAKETIME_DONT_FAKE_MONOTONIC=1"
    drop_in = f"printf '[Service]\\nEnvironment={environment}\\n' >{DROP_IN}; systemctl daemon-reload"
    with changed(n1, DROP_IN, f"echo -30d >{clock}; chmod 644 {clock}; {drop_in}"):
        n1.run("systemctl restart edgeorch")
        n1.until_status("clock")
        assert n1.node.request("GET", "/readyz")[0] == 503
        recent = "journalctl -u edgeorch -n 20 -o cat --no-pager"
        eventually(lambda: "reason=clock" in n2.run(recent).stdout, "n2 is told that it is the clock")
        assert "reason=expired" not in n2.run(recent).stdout
        assert n2.node.sees()["n1"] != "alive"
        pid = n1.show("MainPID")
        n1.run(f"echo +0 >{clock}")
        n1.serves()
        eventually(lambda: n2.node.sees()["n1"] == "alive", "n1 is back")
        assert n1.show("MainPID") == pid


def test_while_draining_the_line_says_what_is_waited_for(n1):
    me = n1.node.get("/api/v1/nodes/self")["id"]
    task = n1.node.submit("sleep", "600", name="resize", placement={"node": me})
    eventually(lambda: n1.node.get(f"/api/v1/tasks/{task['id']}")["state"] == "running", "it runs")
    n1.node.request("POST", f"/api/v1/nodes/{me}/drain")
    try:
        n1.until_status("draining: 1 running (resize); ")
        n1.node.request("DELETE", f"/api/v1/tasks/{task['id']}")
        n1.until_status("draining: nothing runs; ")
    finally:
        n1.node.request("POST", f"/api/v1/nodes/{me}/resume")
    n1.until_status("ready: ")


def test_a_reload_takes_labels_over_and_tells_what_needs_a_restart(n1, n2):
    pid = n1.show("MainPID")
    new = '[node.labels]\nroom = "hall"\n[output]\nmax_bytes = 1000000\n'
    without = f"grep -v -e labels -e max_bytes -e '^\\[output' {CONFIG}.before"
    with changed(n1, CONFIG, f"{without} >{CONFIG}; printf '{new}' >>{CONFIG}; systemctl reload edgeorch"):
        n1.until_status("; needs a restart: output.max_bytes")

        def labels():
            nodes = n2.node.get("/api/v1/nodes")["nodes"]
            return {node["name"]: node["labels"] for node in nodes}["n1"]

        eventually(lambda: labels() == {"room": "hall"}, "the other node knows the label")
        n1.run(f"echo nonsense >>{CONFIG}; systemctl reload edgeorch")
        n1.until_status("WARNING new settings not in force: ")
        assert labels() == {"room": "hall"}
        assert n1.show("MainPID") == pid


def test_the_journal_has_the_story_of_a_task_on_every_node_that_touched_it(n1, n2):
    there = n2.node.get("/api/v1/nodes/self")["id"]
    task = n1.node.submit("echo", "s3cr3t-value", placement={"node": there})
    assert n1.node.ended(task)["state"] == "succeeded"
    assert n1.story(task) == [("accepted", None, None), ("placed", "1", "n2"), ("ended", None, None)]
    target = [("started", "1", "n1"), ("ended here", "1", "n1")]
    eventually(lambda: n2.story(task) == target, "the target tells its part")
    for unit in (n1, n2):
        assert unit.run("journalctl --no-pager | grep -F s3cr3t-value", check=False).returncode == 1


def test_probes_never_touch_the_disk(n1):
    def probes():
        """Of two nodes one question is enough, and nothing else goes on: those of others count, too."""
        text = n1.node.request("GET", "/metrics")[1].decode()
        names = ("edgeorch_membership_pings_answered", "edgeorch_wire_served")
        return sum(float(re.search(rf"^{name}\S* (\S+)$", text, re.MULTILINE)[1]) for name in names)

    def written():
        return int(n1.run(f"sed -n 's/^write_bytes: //p' /proc/{n1.show('MainPID')}/io").stdout)

    first, bytes_before = probes(), written()
    eventually(lambda: probes() >= first + 10, "ten probes are answered")
    assert written() == bytes_before


def test_what_root_left_in_a_work_folder_is_cleared_away(n1):
    argv = ("sh", "-c", "until [ -e go ]; do sleep 0.1; done")
    task = n1.node.submit(*argv, placement={"node": n1.node.get("/api/v1/nodes/self")["id"]})
    eventually(lambda: n1.node.get(f"/api/v1/tasks/{task['id']}")["state"] == "running", "it runs")
    n1.run(ROOTS_FILES.format(task=task["id"]))
    assert n1.node.ended(task)["state"] == "succeeded"
    listing = f"find /var/lib/edgeorch/tasks -path '*{task['id']}*' | grep -c -e /git -e /deep"
    n1.run(SWEEP)
    assert int(n1.run(listing, check=False).stdout) == 4
    n1.run("systemctl start systemd-tmpfiles-clean.service")
    assert int(n1.run(listing, check=False).stdout) == 0
    n1.run(SWEEP)
    assert not n1.run("ls -d /var/lib/edgeorch/tasks/.removing-*", check=False).stdout


def test_a_state_folder_in_memory_is_pointed_out(n1):
    stop, start = "systemctl stop edgeorch edgeorch-runner", "systemctl start edgeorch-runner edgeorch"
    make = "systemd-tmpfiles --create /etc/tmpfiles.d/edgeorch.conf"
    n1.run(f"{stop}; mount -t tmpfs none /var/lib/edgeorch; {make}; {start}")
    try:
        n1.until_status("; /var/lib/edgeorch is in memory (tmpfs)")
        doctor = n1.run("edgeorch doctor", check=False).stdout
        assert "/var/lib/edgeorch is in memory (tmpfs)" in doctor
    finally:
        n1.run(f"{stop}; umount /var/lib/edgeorch; {start}")
        n1.serves()
