"""The rules of firewalld, against a firewall-cmd in memory that answers as release 1.3 does.

The image of the test hosts has ufw and nft only; tests/fleet/test_firewall.py tries a real one where it can.
"""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("ansible.module_utils.basic", reason="no ansible-core: pip install -e '.[dev]'")

MODULE = Path(__file__).parents[2] / "playbooks/library/edgeorch_firewall.py"
spec = importlib.util.spec_from_file_location("edgeorch_firewall", MODULE)
firewall = importlib.util.module_from_spec(spec)
spec.loader.exec_module(firewall)

PORTS = ["56001/tcp", "56002/tcp", "5353/udp"]
NETWORKS = ["10.98.0.0/16", "fd00::/64"]
RICH = [
    'rule family="ipv4" source address="10.98.0.0/16" service name="edgeorch" accept',
    'rule family="ipv6" source address="fd00::/64" service name="edgeorch" accept',
]


class FirewallCommand:
    """Permanent rules and those in force; stands in for the module, too."""

    check_mode = False

    def __init__(self):
        self.services = {"ssh": {"22/tcp"}}
        self.zones = {zone: {"services": {"ssh"}, "rich": set()} for zone in ("public", "home", "docker")}
        self.reloads = 0
        self.params = {}

    def get_bin_path(self, name, opt_dirs):
        return f"/usr/bin/{name}" if name == "firewall-cmd" else None

    def run_command(self, argv, environ_update):
        words = dict(word.lstrip("-").partition("=")[::2] for word in argv[1:])
        changes = any(word.split("-")[0] in {"new", "delete", "add", "remove"} for word in words)
        assert not (changes and self.check_mode)
        assert not changes or "permanent" in words
        zone, service = self.zones.get(words.get("zone")), self.services.get(words.get("service"))
        what, value = next(pair for pair in words.items() if pair[0] not in {"permanent", "zone", "service"})
        verb, _, kind = what.partition("-")
        out = ""
        if verb in {"get", "list"}:
            out = {
                "get-services": lambda: " ".join(self.services),
                "get-active-zones": lambda: "home\n  interfaces: eth1\ndocker\n  interfaces: docker0",
                "get-default-zone": lambda: "public",
                "get-ports": lambda: " ".join(service),
                "list-services": lambda: " ".join(zone["services"]),
                "list-rich-rules": lambda: "\n".join(zone["rich"]),
            }[what]()
        elif verb in {"add", "remove"}:
            assert kind != "service" or value in self.services
            place = service if kind == "port" else zone["rich" if kind == "rich-rule" else "services"]
            getattr(place, verb)(value)
        elif what == "new-service":
            self.services[value] = set()
        elif what == "delete-service":
            del self.services[value]
        else:
            assert what == "reload"
            self.reloads += 1
        return 0, f"{out}\n", ""


@pytest.fixture
def command():
    return FirewallCommand()


def play(command, state="present", networks=(), ports=PORTS):
    command.params = {"state": state, "networks": list(networks), "ports": list(ports)}
    return firewall.Firewalld(firewall.Firewall(command))()


def test_open_to_all_where_no_network_is_named(command):
    assert play(command)
    assert command.services["edgeorch"] == set(PORTS)
    assert command.reloads == 1
    assert {name: sorted(zone["services"]) for name, zone in command.zones.items()} == {
        "public": ["edgeorch", "ssh"],
        "home": ["edgeorch", "ssh"],
        "docker": ["ssh"],
    }
    assert play(command) == []
    assert command.reloads == 1


def test_only_the_networks_and_another_port(command):
    play(command)
    assert play(command, networks=NETWORKS)
    for zone in ("public", "home"):
        assert command.zones[zone] == {"services": {"ssh"}, "rich": set(RICH)}
    assert play(command, networks=NETWORKS) == []
    changes = play(command, networks=NETWORKS[:1], ports=[*PORTS[1:], "8443/tcp"])
    assert "firewall-cmd --permanent --service=edgeorch --add-port=8443/tcp" in changes
    assert command.services["edgeorch"] == {*PORTS[1:], "8443/tcp"}
    assert command.zones["home"]["rich"] == {RICH[0]}


def test_taken_out_again_with_nobody_elses_rules(command):
    own = 'rule family="ipv4" source address="10.1.0.0/16" service name="ssh" accept'
    command.zones["home"]["rich"].add(own)
    for networks in ((), NETWORKS):
        play(command, networks=networks)
        assert play(command, "absent", networks)
        assert command.services == {"ssh": {"22/tcp"}}
        assert [sorted(zone["services"]) for zone in command.zones.values()] == [["ssh"]] * 3
        assert command.zones["home"]["rich"] == {own}
        assert play(command, "absent") == []


def test_a_look_changes_nothing(command):
    command.check_mode = True
    assert play(command, networks=NETWORKS)
    assert "edgeorch" not in command.services
    assert command.reloads == 0
