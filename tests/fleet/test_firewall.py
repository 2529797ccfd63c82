"""Only a firewall that is active is opened, for the fleet's networks, and closed again."""

import socket

import pytest
from controller import PLAYBOOKS, eventually

PORTS = ("56001/tcp", "56002/tcp", "5353/udp")
TABLE = """\
table inet own {
  chain in {
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    iif lo accept
    tcp dport { 22, 56001 } accept
  }
}
"""

LISTEN = 'import socket, time; s = socket.socket(); s.bind(("", 56001)); s.listen(); time.sleep(900)'


def rules(hosts, name):
    """Our rules, as ufw keeps them."""
    lines = hosts.run(name, "ufw show added").stdout.splitlines()
    return sorted(line for line in lines if line.endswith("comment 'edgeorch'"))


@pytest.fixture(scope="module")
def play(module_hosts, tmp_path_factory):
    """Run the role alone on one host: ``play("present", networks)``; a test leaves its firewall inactive."""
    controller = module_hosts(1)
    book = tmp_path_factory.mktemp("firewall") / "firewall.yml"
    book.write_text(
        "- hosts: edgeorch\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.import_role: {name: firewall}\n"
        "    - ansible.builtin.debug: {msg: '{{ firewall_done.advice }}'}\n"
    )
    # Roles and modules are found beside a playbook of ours; this one is elsewhere.
    env = {
        "ANSIBLE_ROLES_PATH": str(PLAYBOOKS / "roles"),
        "ANSIBLE_LIBRARY": str(PLAYBOOKS / "library"),
        "ANSIBLE_MODULE_UTILS": str(PLAYBOOKS / "module_utils"),
    }

    def run(state="present", networks=(), *arguments):
        listed = "[" + ", ".join(f'"{network}"' for network in networks) + "]"
        given = f'{{"firewall_state": "{state}", "edgeorch_networks": {listed}}}'
        return controller.play(str(book), "-e", given, *arguments, env=env)

    return controller.hosts, run


def test_ufw(play):
    hosts, run = play
    assert run().changed == 0
    assert rules(hosts, "n1") == []
    assert "inactive" in hosts.run("n1", "ufw status").stdout

    hosts.run("n1", "ufw allow 22/tcp && ufw allow 8080/tcp comment mine && ufw --force enable")
    assert run("present", (), "--check").changed == 1
    assert rules(hosts, "n1") == []
    assert run().changed == 1
    assert rules(hosts, "n1") == sorted(f"ufw allow {port} comment 'edgeorch'" for port in PORTS)
    assert run().changed == 0

    networks = ("10.98.0.0/16", "fd00::/64")
    assert run("present", networks).changed == 1
    assert len(rules(hosts, "n1")) == 6
    assert all(any(f"from {network} " in rule for network in networks) for rule in rules(hosts, "n1"))
    assert run("present", networks).changed == 0

    assert run("absent", networks).changed == 1
    left = hosts.run("n1", "ufw show added").stdout
    assert "edgeorch" not in left
    assert "ufw allow 8080/tcp comment 'mine'" in left
    assert run("absent").changed == 0
    hosts.run("n1", "ufw --force disable")


@pytest.fixture
def firewalld(play):
    """Runs on the host, and a program that listens on our first port."""
    hosts, _ = play
    hosts.run("n1", "systemctl unmask firewalld && systemctl start firewalld")
    hosts.run("n1", f"systemd-run --quiet --unit listener python3 -c '{LISTEN}'")
    hosts.run("n1", "until ss -Hltn sport = :56001 | grep -q .; do :; done")
    yield lambda *words: hosts.run("n1", "firewall-cmd", *words).stdout.split("\n")[:-1]
    hosts.run("n1", "systemctl stop listener firewalld && systemctl mask firewalld")


def test_firewalld(play, firewalld):
    hosts, run = play

    def reached():
        try:
            socket.create_connection((hosts["n1"].address, 56001), timeout=2).close()
        except OSError:
            return False
        return True

    # It is on the bus before its rules are in force.
    eventually(lambda: not reached(), "firewalld keeps strangers out")
    assert run("present", (), "--check").changed == 1
    assert "edgeorch" not in firewalld("--get-services")[0].split()
    assert run().changed == 1
    assert "edgeorch" in firewalld("--list-services")[0].split()
    assert sorted(firewalld("--permanent", "--service=edgeorch", "--get-ports")[0].split()) == sorted(PORTS)
    assert reached()
    assert run().changed == 0

    networks = ("10.99.0.0/16", "fd00::/64")
    assert run("present", networks).changed == 1
    assert "edgeorch" not in firewalld("--list-services")[0].split()
    assert sorted(firewalld("--list-rich-rules")) == [
        'rule family="ipv4" source address="10.99.0.0/16" service name="edgeorch" accept',
        'rule family="ipv6" source address="fd00::/64" service name="edgeorch" accept',
    ]
    assert not reached()
    assert run("present", networks).changed == 0
    assert run("present", ("10.98.0.0/16",)).changed == 1
    assert reached()

    assert run("absent", networks).changed == 1
    assert not reached()
    assert "edgeorch" not in firewalld("--get-services")[0].split()
    assert firewalld("--list-rich-rules") in ([], [""])
    assert hosts.run("n1", "find /etc/firewalld -name '*edgeorch*'").stdout == ""
    assert run("absent").changed == 0


def test_rules_written_by_hand_are_left_alone_and_the_missing_ones_told(play):
    hosts, run = play
    hosts.run("n1", "nft -f -", stdin=TABLE)
    before = hosts.run("n1", "nft list table inet own").stdout
    done = run("present", ("10.98.0.0/16",))
    assert done.changed == 0
    assert hosts.run("n1", "nft list table inet own").stdout == before
    told = [line.strip(' ",-') for line in done.output.splitlines() if "nft insert rule" in line]
    allow = "nft insert rule inet own in ip saddr { 10.98.0.0/16 }"
    assert told == [
        f"{allow} tcp dport 56002 accept comment edgeorch",
        f"{allow} udp dport 5353 accept comment edgeorch",
    ]
    for line in told:
        hosts.run("n1", line.replace("{", "'{").replace("}", "}'"))
    assert "nft insert rule" not in run("present", ("10.98.0.0/16",)).output
    hosts.run("n1", "nft delete table inet own")
