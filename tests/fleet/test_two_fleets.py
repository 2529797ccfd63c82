"""Two fleets on one LAN, found by mDNS alone: each is a world of its own."""

import contextlib
import http.client
import json
import ssl

import pytest
from controller import Controller, eventually

MENTION = "a node of another fleet is on this network"


def test_two_fleets_on_one_lan_ignore_each_other(new_hosts, programs):
    hosts = new_hosts(3).hosts
    inventory = hosts.write_inventory(hosts.folder / "home.yml", ["n1", "n2"], edgeorch_seeds=[])
    home = Controller(hosts, "home", inventory)
    inventory = hosts.write_inventory(
        hosts.folder / "shop.yml", ["n3"], edgeorch_seeds=[], edgeorch_fleet="shop"
    )
    shop = Controller(hosts, "shop", inventory)
    for controller in (home, shop):
        controller.take_over(programs)
        controller.play("deploy")
    n1, n2, n3 = home.node("n1"), home.node("n2"), shop.node("n3")

    eventually(lambda: n1.sees() == n2.sees() == {"n1": "alive", "n2": "alive"}, "home is complete")
    for host in ("n1", "n2"):
        eventually(lambda host=host: _mentions(hosts, host, "n3") == 1, f"{host} says that n3 is foreign")
    for stranger in ("n1", "n2"):
        eventually(
            lambda stranger=stranger: _mentions(hosts, "n3", stranger) == 1, f"n3 says {stranger} is foreign"
        )
    assert n3.sees() == {"n3": "alive"}

    # Neither key nor token of one fleet opens anything in the other.
    with pytest.raises(ssl.SSLCertVerificationError):
        _ask(n3.address, home.state / "ca.pem", shop.token())
    assert n3.request("GET", "/api/v1/nodes", token=home.token())[0] == 401

    # No seeds: what brings a moved node back is mDNS, set up again on its new interface.
    hosts.disconnect("n2")
    eventually(lambda: n1.sees()["n2"] == "dead", "n2 is dead")
    hosts.connect("n2", str(hosts.subnet[78]))
    eventually(lambda: n1.sees() == n2.sees() == {"n1": "alive", "n2": "alive"}, "home heals", seconds=10)

    # It all was announced again, and a restart does it once more.
    hosts.run("n3", "systemctl restart edgeorch")
    eventually(lambda: n3.sees() == {"n3": "alive"}, "n3 is back")
    eventually(lambda: _mentions(hosts, "n3", "n2") == 2, "n3 says it once in each of its lives")
    assert n1.sees() == {"n1": "alive", "n2": "alive"}
    assert [_mentions(hosts, host, "n3") for host in ("n1", "n2")] == [1, 1]
    for host in hosts.by_name:
        journal = hosts.run(host, "journalctl -u edgeorch --no-pager").stdout
        assert "connection refused" not in journal
        assert "Traceback" not in journal


def _mentions(hosts, host, stranger):
    """How often a host has said that another one is foreign."""
    journal = hosts.run(host, "journalctl -u edgeorch --no-pager -o json").stdout
    messages = [json.loads(line)["MESSAGE"] for line in journal.splitlines()]
    return sum(text.startswith(MENTION) and f"name={stranger} " in text for text in messages)


def _ask(address, ca, token):
    context = ssl.create_default_context(cafile=ca)
    connection = http.client.HTTPSConnection(address, 56001, timeout=10, context=context)
    with contextlib.closing(connection):
        connection.request("GET", "/api/v1/nodes", headers={"Authorization": f"Bearer {token}"})
