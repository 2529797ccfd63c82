#!/usr/bin/python
"""Open edgeorch's ports in a firewall that is already active, or take the openings out."""

DOCUMENTATION = r"""
module: edgeorch_firewall
short_description: Rules for edgeorch in an active ufw or firewalld
description:
  - A firewall that is not active is not touched, and none is ever enabled or flushed.
  - The rules carry the name C(edgeorch); others are left alone.
  - Rules of nftables that somebody wrote by hand are not edited. Where they drop what is not listed,
    C(advice) has the rules to add.
options:
  networks:
    description: Who may connect, as CIDRs; empty for everybody.
    type: list
    elements: str
    default: []
  ports:
    description: Ports as C(56001/tcp).
    type: list
    elements: str
    default: []
  state:
    description: Whether the rules are to be there.
    type: str
    choices: [present, absent]
    default: present
author: edgeorch
"""

EXAMPLES = r"""
- name: Open the ports
  edgeorch_firewall:
    networks: [192.168.1.0/24]
    ports: [56001/tcp, 56002/tcp, 5353/udp]
"""

RETURN = r"""
firewall:
  description: C(ufw), C(firewalld), C(nftables) or empty.
  returned: always
  type: str
advice:
  description: Commands for the owner of a firewall that is not edited here.
  returned: always
  type: list
  elements: str
"""

import ipaddress
import json
import os
import shlex

from ansible.module_utils.basic import AnsibleModule

NAME = "edgeorch"
LEFT_OVER = "/etc/firewalld/services/edgeorch.xml.old"


class Firewall:
    """What is wanted, and how commands are run."""

    def __init__(self, module):
        self.module = module
        self.present = module.params["state"] == "present"
        self.networks = [
            str(ipaddress.ip_network(network, strict=False)) for network in module.params["networks"]
        ]
        self.ports = [port.split("/") for port in module.params["ports"]]

    def ask(self, *argv):
        """The output of a command; None where it is missing or fails."""
        path = self.module.get_bin_path(argv[0], opt_dirs=["/usr/sbin", "/sbin"])
        if not path:
            return None
        code, out, _ = self.module.run_command([path, *argv[1:]], environ_update={"LC_ALL": "C"})
        return None if code else out

    def run(self, *argv):
        """Run a command that must work, unless this is only a look."""
        if not self.module.check_mode and self.ask(*argv) is None:
            self.module.fail_json(msg="%s failed: run it on the host to see why" % shlex.join(argv))


def ufw(firewall):
    """Make ufw's rules what they should be; tell what changed."""
    wanted = []
    if firewall.present:
        for source in firewall.networks or ["any"]:
            for port, protocol in firewall.ports:
                short = source == "any"
                rule = "%s/%s" % (port, protocol)
                long = "from %s to any port %s proto %s" % (source, port, protocol)
                wanted.append("allow %s comment '%s'" % (rule if short else long, NAME))
    known = [
        line[len("ufw ") :]
        for line in (firewall.ask("ufw", "show", "added") or "").splitlines()
        if line.startswith("ufw ") and line.endswith("comment '%s'" % NAME)
    ]
    extra = [rule for rule in known if rule not in wanted]
    missing = [rule for rule in wanted if rule not in known]
    for rule in extra:
        firewall.run("ufw", "--force", "delete", *shlex.split(rule))
    for rule in missing:
        firewall.run("ufw", *shlex.split(rule))
    return ["- ufw " + rule for rule in extra] + ["+ ufw " + rule for rule in missing]


class Firewalld:
    """The same with firewalld: a service of our name, opened for the networks in each zone that is in use."""

    def __init__(self, firewall):
        self.firewall = firewall
        self.changes = []

    def __call__(self):
        """Make them what they should be; tell what changed."""
        there = NAME in (self.ask("--get-services") or "").split()
        if self.firewall.present:
            self.service(there)
        for zone in self.zones():
            self.zone("--zone=" + zone)
        if there and not self.firewall.present:
            self.change("--delete-service=" + NAME)
            # Deleting leaves a copy of its own.
            if not self.firewall.module.check_mode and os.path.exists(LEFT_OVER):
                os.unlink(LEFT_OVER)
        if self.changes:
            self.firewall.run("firewall-cmd", "--reload")
        return self.changes

    def ask(self, *words):
        """What the permanent rules say."""
        return self.firewall.ask("firewall-cmd", "--permanent", *words)

    def change(self, *words):
        """Change the permanent rules."""
        self.changes.append("firewall-cmd --permanent " + " ".join(words))
        self.firewall.run("firewall-cmd", "--permanent", *words)

    def service(self, there):
        """The service with its ports."""
        wanted = {"/".join(port) for port in self.firewall.ports}
        known = set((self.ask("--service=" + NAME, "--get-ports") or "").split()) if there else set()
        if not there:
            self.change("--new-service=" + NAME)
        for port in sorted(wanted - known):
            self.change("--service=" + NAME, "--add-port=" + port)
        for port in sorted(known - wanted):
            self.change("--service=" + NAME, "--remove-port=" + port)

    def zone(self, zone):
        """The service in one zone: for the networks by rich rules, else for everybody."""
        wanted = {
            'rule family="ipv%d" source address="%s" service name="%s" accept'
            % (ipaddress.ip_network(network).version, network, NAME)
            for network in (self.firewall.networks if self.firewall.present else ())
        }
        rules = (self.ask(zone, "--list-rich-rules") or "").splitlines()
        known = {line for line in rules if 'service name="%s"' % NAME in line}
        for rule in sorted(known - wanted):
            self.change(zone, "--remove-rich-rule=" + rule)
        for rule in sorted(wanted - known):
            self.change(zone, "--add-rich-rule=" + rule)
        open_to_all = NAME in (self.ask(zone, "--list-services") or "").split()
        if open_to_all != (self.firewall.present and not wanted):
            self.change(zone, "--%s-service=%s" % ("remove" if open_to_all else "add", NAME))

    def zones(self):
        """The default zone and those with interfaces, without the ones of container networks."""
        lines = (self.firewall.ask("firewall-cmd", "--get-active-zones") or "").splitlines()
        active = [line.split()[0] for line in lines if line and not line.startswith(" ")]
        default = (self.firewall.ask("firewall-cmd", "--get-default-zone") or "public").strip()
        return sorted({*active, default} - {"docker", "libvirt", "trusted"})


def nftables(firewall):
    """Commands that would open the ports in rules that drop what they do not list."""
    ruleset = firewall.ask("nft", "--json", "list", "ruleset")
    rows = json.loads(ruleset)["nftables"] if ruleset else []
    advice = []
    for chain in (row["chain"] for row in rows if "chain" in row):
        if chain.get("hook") != "input" or chain.get("policy") != "drop":
            continue
        place = [chain["family"], chain["table"], chain["name"]]
        rules = [row["rule"] for row in rows if "rule" in row]
        mine = [rule for rule in rules if [rule["family"], rule["table"], rule["chain"]] == place]
        for port, protocol in firewall.ports:
            if not any(opens(rule, int(port), protocol) for rule in mine):
                rule = "%s dport %s accept comment %s" % (protocol, port, NAME)
                advice += [
                    "nft insert rule %s %s" % (" ".join(place), source + rule) for source in sources(firewall)
                ]
    return advice


def sources(firewall):
    """How rules begin that let in the networks only: one for each version of IP."""
    found = []
    for version, word in ((4, "ip"), (6, "ip6")):
        these = [one for one in firewall.networks if ipaddress.ip_network(one).version == version]
        if these:
            found.append("%s saddr { %s } " % (word, ", ".join(these)))
    return found or [""]


def opens(rule, port, protocol):
    """Whether a rule accepts a port."""
    expressions = rule.get("expr", [])
    if not any("accept" in part for part in expressions):
        return False
    for match in (part["match"] for part in expressions if "match" in part):
        left, right = match.get("left", {}), match.get("right")
        if left.get("payload") == {"protocol": protocol, "field": "dport"}:
            found = right["set"] if isinstance(right, dict) and "set" in right else [right]
            return any(port == one or holds(one, port) for one in found)
    return False


def holds(one, port):
    """Whether a range of ports has this one."""
    low, high = one.get("range", (0, -1)) if isinstance(one, dict) else (0, -1)
    return low <= port <= high


def main():
    """The module."""
    module = AnsibleModule(
        argument_spec={
            "networks": {"type": "list", "elements": "str", "default": []},
            "ports": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    try:
        firewall = Firewall(module)
    except ValueError as error:
        module.fail_json(msg="edgeorch_networks: %s" % error)
    if "Status: active" in (firewall.ask("ufw", "status") or ""):
        name, changes, advice = "ufw", ufw(firewall), []
    elif (firewall.ask("firewall-cmd", "--state") or "").strip() == "running":
        name, changes, advice = "firewalld", Firewalld(firewall)(), []
    else:
        advice = nftables(firewall) if firewall.present else []
        name, changes = "nftables" if advice else "", []
    diff = {"before": "", "after": "".join(line + "\n" for line in changes)}
    module.exit_json(changed=bool(changes), firewall=name, advice=advice, diff=diff if changes else {})


if __name__ == "__main__":
    main()
