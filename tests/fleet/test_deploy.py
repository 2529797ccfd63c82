"""``deploy.yml`` over SSH by a user with sudo: again, in check mode, with a host more, with a host off."""

import json

import pytest

from edgeorch.config import Config

MOST_TASKS = 50
TOML = "/etc/edgeorch/edgeorch.toml"
# Machines in containers may open it where they have it; no service may.
DEVICE = "/dev/net/tun"
# Writes down every command line that runs while it runs.
SPY = "systemd-run -q --unit spy sh -c 'while :; do cat /proc/[0-9]*/cmdline; sleep 0.05; done >/root/seen'"


def started(hosts, *names):
    """When the node and the runner of each host were started."""
    asked = "systemctl show --property ExecMainStartTimestampMonotonic --value edgeorch edgeorch-runner"
    return {name: hosts.run(name, asked).stdout.split() for name in names}


def secrets(controller):
    """Texts that nobody may see: the token, the CA's key, the nodes' keys."""
    show = ("cat", "/etc/edgeorch/pki/node.key")
    own = [controller.hosts.run(name, *show, check=False).stdout for name in controller.hosts.by_name]
    keys = [(controller.state / "ca.key").read_text(), *own]
    # The last line of such a file is a part of the public key.
    return [controller.token(), *(line for key in keys for line in key.splitlines()[1:3])]


def recap(play):
    """What a play says at its end."""
    return play.output.partition("TASK [health : Say how the fleet is]")[2]


def test_a_second_run_is_short_and_changes_nothing(fleet):
    first, second = fleet.plays[:2]
    assert first.changed > 0
    assert second.changed == 0
    assert second.tasks <= MOST_TASKS
    assert "4 nodes of home are ready and see each other: n1, n2, n3, n4" in recap(second)
    assert fleet.token() in first.output
    assert fleet.token() not in second.output


def test_a_look_at_a_deployed_fleet_shows_no_change_and_no_secret(fleet):
    play = fleet.play("deploy", "--check", "--diff", "-vvv")
    assert play.changed == 0
    assert not [text for text in secrets(fleet) if text in play.output]


def test_what_is_where_and_whose(fleet):
    said = fleet.hosts.run("n2", f"cd /etc/edgeorch; stat -c '%n %U:%G %a' . {TOML} tokens.toml pki/node.key")
    assert said.stdout.split("\n")[:-1] == [
        ". root:edgeorch 750",
        f"{TOML} root:edgeorch 640",
        "tokens.toml root:edgeorch 640",
        "pki/node.key root:edgeorch 640",
    ]
    seeds = [host.address for host in fleet.hosts.by_name.values()]
    told = json.loads(fleet.hosts.run("n2", "edgeorch node --print-config --json").stdout)
    values = {row["key"]: row["value"] for row in told}
    assert sorted(values["discovery.seeds"]) == sorted(seeds)
    assert values["executor.drivers"] == ["native"]
    assert values["store.retention_s"] == Config().store.retention_s


def test_each_node_answers_curl_from_another_host(fleet):
    for name, on in (("n1", "n2"), ("n2", "n3"), ("n3", "n4"), ("n4", "n1")):
        done = fleet.node(name).curl(on, "/api/v1/nodes")
        assert done.returncode == 0, done.stderr
        alive = {row["name"] for row in json.loads(done.stdout)["nodes"] if row["state"] == "alive"}
        assert alive == {"n1", "n2", "n3", "n4"}


def test_a_typo_is_told_by_the_node_and_repaired_by_the_next_run(fleet):
    hosts = fleet.hosts
    others = started(hosts, "n2", "n3", "n4")
    hosts.run("n1", f"sed -i 's/^labels/lables/' {TOML}; systemctl restart edgeorch", check=False)
    said = hosts.run("n1", "systemctl show -p ExecMainStatus -p ActiveState edgeorch").stdout
    assert "ExecMainStatus=78" in said
    assert "ActiveState=failed" in said
    journal = hosts.run("n1", "journalctl -u edgeorch -n 20 -o cat").stdout
    assert f"edgeorch: {TOML}: unknown key in [node]: 'lables'\n  did you mean 'labels'?" in journal

    play = fleet.play("deploy", "--limit", "n1", "--tags", "config,service,health", "--diff")
    assert "-lables = {}" in play.output
    assert fleet.node("n1").sees() == dict.fromkeys(["n1", "n2", "n3", "n4"], "alive")
    assert started(hosts, "n2", "n3", "n4") == others


@pytest.fixture
def settings(fleet):
    """Run only what settings need, on n2: ``settings(edgeorch_labels=...)``; undone at the end."""
    last = {}

    def run(check=True, **variables):
        nonlocal last
        last, given = variables, json.dumps(variables)
        return fleet.play(
            "deploy", "--limit", "n2", "--tags", "config,service,health", "-e", given, check=check
        )

    yield run
    if last:
        run()


def test_a_setting_is_reloaded_where_it_can_be_and_a_bad_one_never_gets_there(fleet, settings):
    node, hosts = fleet.node("n2"), fleet.hosts
    before = started(hosts, "n2")["n2"]
    settings(edgeorch_labels={"zone": "attic"})
    assert started(hosts, "n2")["n2"] == before
    assert node.get("/api/v1/nodes/self")["labels"] == {"zone": "attic"}

    play = settings(check=False, edgeorch_labels={"ssd": True})
    assert play.failures["n2"] == (
        "n2: the labels ssd must be text: put their values in quotes in edgeorch_labels"
    )
    play = settings(check=False, edgeorch_settings={"executor": {"slotz": 3}})
    assert (
        play.failures["n2"] == "edgeorch_settings: unknown key in [executor]: 'slotz': did you mean 'slots'?"
    )
    assert started(hosts, "n2")["n2"] == before

    settings(edgeorch_settings={"executor": {"slots": 3}})
    node_started, runner_started = started(hosts, "n2")["n2"]
    assert node_started != before[0]
    assert runner_started == before[1]
    assert node.get("/api/v1/nodes/self")["slots"] == 3

    # What only the start can find out is told in the node's own words.
    play = settings(check=False, edgeorch_settings={"node": {"state_dir": "/proc/edgeorch"}})
    assert play.failures["n2"].startswith("edgeorch does not start: ")
    assert "/proc/edgeorch" in play.failures["n2"]


def test_devices_are_opened_to_native_services(fleet, settings):
    def look(path):
        words = ("--limit", "n2", "--tags", "config", "--check", "--diff")
        return fleet.play("deploy", *words, "-e", json.dumps({"edgeorch_devices": [path]}), check=False)

    assert "+DeviceAllow=/dev/null rw" in look("/dev/null").output
    for path, said in {
        "/dev/none": "there is no /dev/none: connect it, or take it out of edgeorch_devices",
        "/etc/passwd": "/etc/passwd is not a device: take it out of edgeorch_devices",
    }.items():
        assert look(path).failures["n2"] == said

    node = fleet.node("n2")
    fleet.hosts.run("n2", f"mkdir -p /dev/net; [ -e {DEVICE} ] || mknod -m 666 {DEVICE} c 10 200")

    def opens():
        task = node.submit("/usr/bin/python3", "-c", f"open('{DEVICE}', 'rb+', 0)", placement={"node": "n2"})
        return node.ended(task)["state"] == "succeeded"

    def play(**variables):
        # The runner takes its devices when it starts, which it does anew on a drained host only.
        assert node.request("POST", "/api/v1/nodes/self/drain")[0] == 200
        settings(**variables)
        assert node.request("POST", "/api/v1/nodes/self/resume")[0] == 200

    assert not opens()
    play(edgeorch_devices=[DEVICE])
    assert opens()
    play()
    assert not opens()


def test_a_host_more_and_a_host_off(new_hosts, programs):
    controller = new_hosts(2)
    hosts = controller.hosts
    look = controller.play("deploy", "--check", "--diff")
    assert all(line["failed"] == 0 for line in look.recap.values())
    assert not (controller.folder / ".edgeorch").exists()
    assert hosts.run("n1", "ls -d /etc/edgeorch /opt/edgeorch", check=False).stdout == ""

    controller.take_over(programs)
    for name in ("n1", "n2"):
        hosts.run(name, SPY)
    play = controller.play("deploy", "-vvv")
    own = [controller.token()]
    shown = play.output.count(own[0])
    for name in ("n1", "n2"):
        hosts.run(name, "systemctl stop spy")
        seen = hosts.run(name, "tr '\\0' ' ' </root/seen | sed 's/[^[:print:]]//g'").stdout
        assert "edgeorch" in seen
        assert not [text for text in secrets(controller) if text in seen]
    assert not [text for text in secrets(controller) if text not in own and text in play.output]
    # The first token is shown at the end, and nowhere else.
    end = play.output.partition("TASK [tokens : Show the first token, once]")[2]
    assert end.count(own[0]) == shown > 0

    before = started(hosts, "n1", "n2")
    hosts.add(1)
    play = controller.play("deploy", "--limit", "n3")
    assert set(play.recap) == {"n3"}
    assert started(hosts, "n1", "n2") == before
    for name in ("n1", "n2", "n3"):
        assert controller.node(name).sees() == dict.fromkeys(["n1", "n2", "n3"], "alive")

    hosts.stop("n3")
    # The others learn of a seed more, which takes no restart.
    play = controller.play("deploy")
    assert started(hosts, "n1", "n2") == before
    assert "NOT DEPLOYED: n3; when they can be reached: ansible-playbook deploy.yml --limit n3" in recap(play)
    assert "2 nodes of home are ready and see each other: n1, n2" in recap(play)
    play = controller.play("deploy", "--tags", "health", "-e", "edgeorch_strict=true", check=False)
    assert play.returncode != 0
    assert any(said.startswith("not deployed: n3; ") for said in play.failures.values())
