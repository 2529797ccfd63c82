"""A cable is pulled and put in again: the interface has another name then, and another address."""

import time

import zeroconf
from controller import eventually

from edgeorch.membership.responder import SERVICE

HEAL_S = 10
LOST = "n4"


def test_a_partition_heals_and_mdns_is_set_up_again(fleet, figures):
    hosts = fleet.hosts
    nodes = {name: fleet.node(name) for name in hosts.by_name}
    others = nodes.keys() - {LOST}
    address, lost_id = hosts[LOST].address, nodes[LOST].get("/api/v1/nodes/self")["id"]
    interface = _interface(hosts)
    assert _announced_address(hosts, lost_id) == address
    hosts.disconnect(LOST)
    try:
        _wait_apart(nodes, others)
        done = nodes["n1"].ended(nodes["n1"].submit("true"))
        assert done["state"] == "succeeded"

        hosts.connect(LOST, str(hosts.subnet[77]))
        healed_s = _wait_together(nodes)
        figures("heal a partition, with a new address", healed_s, HEAL_S)
        assert _interface(hosts) != interface
        # A question that nobody's cache answers: the node hears it on the new interface, so it is not deaf.
        assert _announced_address(hosts, lost_id) == hosts[LOST].address
        eventually(
            lambda: nodes["n1"].get(f"/api/v1/nodes/{LOST}")["address"] == hosts[LOST].address,
            f"{LOST} is known by its new address",
        )
        done = nodes["n1"].ended(nodes["n1"].submit("true", placement={"node": LOST}))
        assert done["state"] == "succeeded"
        hosts.disconnect(LOST)
        _wait_apart(nodes, others)
    finally:
        hosts.connect(LOST, address)
    figures("heal a partition, with the first address again", _wait_together(nodes), HEAL_S)
    assert _announced_address(hosts, lost_id) == address


def _wait_apart(nodes, others):
    """Each side says that the other is dead; the side without a network says it in its journal."""
    eventually(
        lambda: all(nodes[name].sees()[LOST] == "dead" for name in others), f"the others say {LOST} is dead"
    )
    hosts = nodes[LOST].hosts
    for name in others:
        told = f'journalctl -u edgeorch --no-pager -o cat | grep "name={name} " | tail -1'
        eventually(
            lambda told=told: "node is dead" in hosts.run(LOST, told).stdout,
            f"{LOST} says that {name} is dead",
        )


def _wait_together(nodes):
    """Everybody sees everybody alive; return after how many seconds."""
    start = time.monotonic()
    everybody = dict.fromkeys(nodes, "alive")
    eventually(
        lambda: all(node.sees() == everybody for node in nodes.values()), "all see all", seconds=HEAL_S
    )
    return time.monotonic() - start


def _interface(hosts):
    """The name of the interface that leads to the LAN."""
    return hosts.run(LOST, "ip -o -4 addr show to " + str(hosts.subnet)).stdout.split()[1]


def _announced_address(hosts, node_id):
    """What the node answers to this machine, which asks by multicast and remembers nothing."""
    asker = zeroconf.Zeroconf(interfaces=[hosts.own_address])
    try:
        info = zeroconf.ServiceInfo(SERVICE, f"{node_id}.{SERVICE}")
        assert info.request(asker, 5000), f"node {node_id} does not answer by mDNS"
        (address,) = info.parsed_addresses()
        return address
    finally:
        asker.close()
