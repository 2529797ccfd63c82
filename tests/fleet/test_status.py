"""``status.yml`` and ``drain.yml``: one table of the fleet, and nodes that take nothing new."""

import pytest
from controller import eventually

pytestmark = pytest.mark.long


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


def test_the_table_shows_every_node_and_the_bad_ones_first(new_hosts):
    controller = new_hosts(3)
    hosts = controller.hosts
    controller.play("deploy")
    node = controller.node("n1")
    node.submit("sleep", "1000", placement={"node": "n2"})
    node.submit("true", placement={"constraints": ["labels.gpu == yes"]})
    eventually(lambda: node.get("/api/v1/nodes/n2")["slots_used"] == 1, "it runs on n2")

    good = controller.play("status")
    assert good.changed == 0
    table = rows(good)
    assert list(table) == ["n1", "n2", "n3"]
    for name, cells in table.items():
        assert (cells["STATE"], cells["PEERS"], cells["PROBLEM"]) == ("ready", "2/2", "-"), name
        assert float(cells["SCORE"]) > 0
        assert float(cells["DAYS"]) > 390
        assert cells["VERSION"] == node.get("/api/v1/nodes/self")["version"]
    assert [table[name]["RUNNING"] for name in table] == ["0", "1", "0"]
    assert [table[name]["WAITING"] for name in table] == ["1", "0", "0"]

    hosts.kill("n3")
    eventually(lambda: node.sees()["n3"] == "dead", "n1 misses n3")
    table = rows(controller.play("status"))
    assert list(table) == ["n3", "n1", "n2"]
    assert (table["n3"]["STATE"], table["n1"]["STATE"]) == ("unreachable", "ready")
    assert "10.98." in table["n3"]["PROBLEM"]
    assert "n3 is dead" in table["n1"]["PROBLEM"]

    hosts.run("n2", "systemctl stop edgeorch")
    hosts.run("n1", "echo 'typo = 1' >/etc/edgeorch/edgeorch.toml; systemctl restart edgeorch", check=False)
    table = rows(controller.play("status"))
    states = {name: cells["STATE"] for name, cells in table.items()}
    assert states == {"n1": "failed", "n2": "inactive", "n3": "unreachable"}
    assert "typo" in table["n1"]["PROBLEM"]
    strict = controller.play("status", "-e", "edgeorch_strict=true", check=False)
    assert strict.returncode == 2
    assert "n1, n2, n3" in strict.output


def test_drain_waits_for_what_runs_and_resume_takes_it_back(fleet, playbook):
    node = fleet.node("n1")
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


def test_without_the_token_each_says_where_it_would_be(new_hosts, tmp_path):
    controller = new_hosts(1)
    for name in ("status", "drain", "rollback"):
        play = controller.play(name, check=False)
        (said,) = play.failures.values()
        assert said.startswith(f"this controller has no {controller.state}/admin.token: run deploy.yml first")
