"""``status.yml`` and ``drain.yml``: one table of the fleet, and nodes that take nothing new."""

import json

from controller import eventually
from host_image import USER

TOML = "/etc/edgeorch/edgeorch.toml"


def rows(play):
    """Node to its cells, in the order in which they were shown."""
    lines = play.output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("NODE "))
    shown = {}
    for line in lines[first + 1 :]:
        if not line.startswith("n"):
            break
        name, *cells = line.split(maxsplit=8)
        shown[name] = dict(zip(lines[first].replace("CERT DAYS", "DAYS").split()[1:], cells, strict=True))
    return shown


def test_the_table_shows_every_node_and_the_bad_ones_first(fleet):
    hosts, node = fleet.hosts, fleet.node("n1")
    tasks = [
        node.submit("sleep", "1000", placement={"node": "n2"}),
        node.submit("true", placement={"constraints": ["labels.gpu == yes"]}),
    ]
    eventually(lambda: node.get("/api/v1/nodes/n2")["slots_used"] == 1, "it runs on n2")
    try:
        good = fleet.play("status")
        assert good.changed == 0
        table = rows(good)
        assert list(table) == ["n1", "n2", "n3", "n4"]
        for name, cells in table.items():
            assert (cells["STATE"], cells["PEERS"], cells["PROBLEM"]) == ("ready", "3/3", "-"), name
            assert float(cells["SCORE"]) > 0
            assert float(cells["DAYS"]) > 390
            assert cells["VERSION"] == node.get("/api/v1/nodes/self")["version"]
        assert [table[name]["RUNNING"] for name in table] == ["0", "1", "0", "0"]
        assert [table[name]["WAITING"] for name in table] == ["1", "0", "0", "0"]
    finally:
        for task in tasks:
            node.request("DELETE", f"/api/v1/tasks/{task['id']}")

    hosts.kill("n4")
    try:
        eventually(lambda: node.sees()["n4"] == "dead", "n1 misses n4")
        hosts.run("n2", "systemctl stop edgeorch")
        hosts.run(
            "n1", f"cp -p {TOML} /root; echo 'typo = 1' >{TOML}; systemctl restart edgeorch", check=False
        )
        strict = fleet.play("status", "-e", "edgeorch_strict=true", check=False)
    finally:
        hosts.start("n4")
        hosts.run("n1", f"cp -p /root/edgeorch.toml {TOML}; systemctl start edgeorch")
        hosts.run("n2", "systemctl start edgeorch")
    table = rows(strict)
    states = {name: cells["STATE"] for name, cells in table.items()}
    assert states == {"n1": "failed", "n2": "inactive", "n3": "ready", "n4": "unreachable"}
    assert list(table)[-1] == "n3"
    assert "10.98." in table["n4"]["PROBLEM"]
    assert "n4 is dead" in table["n3"]["PROBLEM"]
    assert "typo" in table["n1"]["PROBLEM"]
    assert strict.returncode == 2
    assert "n1, n2, n4" in strict.output
    well = dict.fromkeys(["n1", "n2", "n3", "n4"], "alive")
    eventually(lambda: all(fleet.node(name).sees() == well for name in well), "all is well again", 60)


def test_drain_waits_for_what_runs_and_resume_takes_it_back(fleet):
    node, playbook = fleet.node("n1"), fleet.play
    task = node.submit("sleep", "1000", placement={"node": "n2"})
    eventually(lambda: node.get("/api/v1/nodes/n2")["slots_used"] == 1, "it runs on n2")
    try:
        looked = playbook("drain", "--limit", "n2", "--check", "--diff")
        assert (looked.changed, node.sees()["n2"]) == (1, "alive")
        busy = playbook("drain", "--limit", "n2", "-e", "edgeorch_drain_s=1", check=False)
        assert "1 running (test)" in busy.failures["n2"]
        eventually(lambda: node.sees()["n2"] == "draining", "n1 knows")
        elsewhere = node.ended(node.submit("true"))
        assert elsewhere["attempts"][-1]["node_name"] != "n2"
        assert node.request("DELETE", f"/api/v1/tasks/{task['id']}")[0] == 202
        assert playbook("drain", "--limit", "n2").changed == 0
        assert playbook("drain", "--limit", "n2", "-e", "edgeorch_state=cordon").changed == 1
        eventually(lambda: node.sees()["n2"] == "cordoned", "n1 knows")
    finally:
        playbook("drain", "--limit", "n2", "-e", "edgeorch_state=resume")
    eventually(lambda: node.sees()["n2"] == "alive", "n1 knows")
    assert playbook("drain", "--limit", "n2", "-e", "edgeorch_state=resume").changed == 0


def test_without_the_token_each_says_where_it_would_be(fleet, tmp_path):
    for name in ("status", "drain", "rollback"):
        play = fleet.play(name, "--limit", "n1", "-e", f"edgeorch_home={tmp_path}", check=False)
        (said,) = play.failures.values()
        assert said.startswith(f"this controller has no {tmp_path}/home/admin.token: run deploy.yml first")


def test_hosts_behind_a_bastion_are_reached_as_the_users_ssh_reaches_them(fleet, tmp_path):
    hosts = fleet.hosts
    jump = f"ssh -i {hosts.key} {hosts._ssh_args(hosts['n1'])} -W %h:%p {USER}@{hosts['n1'].address}"
    inventory = tmp_path / "bastion.yml"
    host = {"ansible_host": hosts["n2"].address}
    host["ansible_ssh_common_args"] = f'{hosts._ssh_args(hosts["n2"])} -o ProxyCommand="{jump}"'
    shared = {"ansible_user": USER, "ansible_ssh_private_key_file": str(hosts.key)}
    inventory.write_text(json.dumps({"edgeorch": {"hosts": {"n2": host}, "vars": shared}}))
    # Else a connection that another play has left open would do.
    table = rows(fleet.play("status", inventory=inventory, env={"ANSIBLE_SSH_ARGS": "-C"}))
    assert table["n2"]["STATE"] == "ready"
    said = hosts.run("n2", "journalctl -u ssh -n 10 -o cat --no-pager").stdout
    assert f"Accepted publickey for {USER} from {hosts['n1'].address} " in said
