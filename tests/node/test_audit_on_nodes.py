"""The audit trail of real nodes with tokens: it survives a crash and is read anywhere."""

import json
import subprocess
import sys

import pytest
from real_fleet import RealFleet, eventually

from edgeorch import cli

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def fleet(tmp_path):
    made = RealFleet(tmp_path, "kitchen", "garage")
    yield made
    made.close()


def token(fleet, name, role):
    """A token that both nodes know."""
    path = fleet.nodes["kitchen"].folder / "tokens.toml"
    argv = [sys.executable, "-m", "edgeorch", "token", "create", "--role", role, "--name", name]
    done = subprocess.run([*argv, "--file", path], capture_output=True, text=True, check=True)
    other = fleet.nodes["garage"].folder / "tokens.toml"
    other.write_bytes(path.read_bytes())
    other.chmod(0o600)
    return done.stdout.strip()


def test_who_did_what_is_known_at_every_node_and_after_a_crash(fleet, capsys):
    boss, user = token(fleet, "boss", "admin"), token(fleet, "user", "submit")
    kitchen, garage = fleet.start()

    def ask(node, method, path, words, body=None):
        status, answer = node.request(method, path, body, Authorization=f"Bearer {words}")
        assert status < 300, answer
        return json.loads(answer)

    spec = {"name": "long", "service": [{"driver": "native", "argv": ["sleep", "1000"]}]}
    task = ask(kitchen, "POST", "/api/v1/tasks", user, spec)
    ask(garage, "DELETE", f"/api/v1/tasks/{task['id']}", boss)
    ask(kitchen, "POST", "/api/v1/nodes/garage/drain", boss, {})
    kitchen.kill()
    kitchen.start()
    fleet.wait_seen(kitchen, "garage", state="draining")
    fleet.wait_seen(garage, "kitchen")
    for _ in range(3):
        assert kitchen.request("GET", "/api/v1/tasks", Authorization="Bearer wrong")[0] == 401
    assert garage.request("GET", "/api/v1/audit", Authorization=f"Bearer {user}")[0] == 403
    pages = [ask(node, "GET", "/api/v1/audit", boss) for node in (kitchen, garage)]
    assert pages[0]["records"] == pages[1]["records"]
    host = kitchen.host
    assert [
        (
            one["node_name"],
            one["action"],
            one["subject"],
            one["token"],
            one["role"],
            one["via_name"],
            one["count"],
        )
        for one in reversed(pages[0]["records"])
    ] == [
        ("kitchen", "submit", task["id"], "user", "submit", "", 1),
        ("kitchen", "cancel", task["id"], "boss", "admin", "garage", 1),
        ("garage", "drain", "garage", "boss", "admin", "kitchen", 1),
        ("kitchen", "refused-login", "", "", "none", "", 3),
    ]
    assert all(one["address"].startswith("127.") for one in pages[0]["records"])
    assert "audit=cancel" in kitchen.log()
    url = f"http://{host}:{fleet.api}"
    assert cli.main(["audit", "--url", url, "--token", boss, "--since", "1h", "--limit", "2"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["WHEN", "NODE", "WHAT"]
    assert [line[2:5] for line in lines[1:]] == [["refused-login x3", "-", "-"], ["drain", "garage", "boss"]]
    assert cli.main(["audit", "--url", url, "--token", boss, "--json", "--local"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["action"] for one in found["records"]] == ["refused-login", "cancel", "submit"]
    assert cli.main(["audit", "--url", url, "--token", user]) == 4
    garage.stop()
    eventually(lambda: kitchen.sees()["garage"] == "left", "garage has left")
    assert cli.main(["audit", "--url", url, "--token", boss]) == 0
    assert "incomplete: no answer from garage" in capsys.readouterr().err
