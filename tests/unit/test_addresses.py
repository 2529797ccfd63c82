import socket
from typing import NamedTuple

import pytest

from edgeorch import addresses
from edgeorch.addresses import allowed_local, is_loopback, select


class Row(NamedTuple):
    family: int
    address: str


class Stats(NamedTuple):
    isup: bool


def v4(address):
    return Row(socket.AF_INET, address)


def v6(address):
    return Row(socket.AF_INET6, address)


ROWS = {
    "wlan0": [v4("192.168.1.20"), Row(17, "02:00:00:00:00:01")],
    "eth0": [v6("fe80::1%eth0"), v6("2001:db8::5"), v6("fd00::5"), v4("10.0.0.10"), v4("10.0.0.9")],
    "lo": [v4("127.0.0.1"), v6("::1")],
    "docker0": [v4("172.17.0.1")],
    "br-0123456789ab": [v4("172.18.0.1")],
    "veth12ab": [v4("169.254.3.1")],
    "virbr0": [v4("192.168.122.1")],
    "podman1": [v4("10.88.0.1")],
    "br0": [v4("10.1.0.1")],
    "wg0": [v4("10.9.0.2")],
    "tailscale0": [v4("100.64.0.7")],
    "eth1": [v4("10.2.0.1")],
}
UP = ROWS.keys() - {"eth1"}


def test_in_a_fixed_order_without_bridges_vpns_loopback_and_what_is_down():
    assert select(ROWS, UP, ()) == [
        ("br0", "10.1.0.1"),
        ("eth0", "10.0.0.9"),
        ("eth0", "10.0.0.10"),
        ("eth0", "2001:db8::5"),
        ("eth0", "fd00::5"),
        ("wlan0", "192.168.1.20"),
    ]


def test_networks_choose_and_let_a_vpn_in():
    assert select(ROWS, UP, ("10.9.0.0/24", "fd00::/8")) == [("eth0", "fd00::5"), ("wg0", "10.9.0.2")]


def test_networks_never_let_a_bridge_or_loopback_in():
    assert select(ROWS, UP, ("172.16.0.0/12", "127.0.0.0/8")) == []


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(addresses.psutil, "net_if_addrs", lambda: ROWS)
    monkeypatch.setattr(addresses.psutil, "net_if_stats", lambda: {n: Stats(n in UP) for n in ROWS})


@pytest.mark.parametrize(
    ("address", "networks", "allowed"),
    [
        ("127.0.0.3", (), True),
        ("::1", ("10.9.0.0/24",), True),
        ("::ffff:127.0.0.1", (), True),
        ("10.0.0.9", (), True),
        ("::ffff:10.0.0.9", (), True),
        ("10.0.0.9", ("192.168.0.0/16",), False),
        ("192.168.1.20", ("192.168.0.0/16",), True),
        ("172.17.0.1", (), False),
        ("172.17.0.1", ("172.16.0.0/12",), False),
        ("10.9.0.2", (), False),
        ("10.9.0.2", ("10.9.0.0/24",), True),
        ("fe80::1%eth0", (), False),
        ("", (), False),
        ("nonsense", (), False),
    ],
)
def test_local_end_of_an_accepted_connection(machine, address, networks, allowed):
    assert allowed_local(address, networks) is allowed


def test_this_machine_is_described_without_loopback():
    for name, address in addresses.usable_addresses(()):
        assert name
        assert not is_loopback(address)


def test_loopback_in_every_form():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("10.0.0.1", "", "localhost", "::ffff:10.0.0.1")))
