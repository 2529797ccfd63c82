"""Which of this machine's addresses other nodes may use.

Container and virtual-machine bridges look like networks but lead nowhere from another machine, so they are
never bound or announced. A VPN does lead somewhere, but only the owner knows whether the fleet should use
it: it counts only where ``node.networks`` names it.
"""

import fnmatch
import socket
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Protocol, TypeAlias

import psutil

IPAddress: TypeAlias = IPv4Address | IPv6Address

BRIDGES = (
    *("docker*", "br-*", "veth*", "virbr*", "vnet*", "cni*", "flannel*", "cali*", "cilium*", "kube-*"),
    *("lxc*", "lxdbr*", "incusbr*", "podman*", "vmnet*", "vboxnet*", "nerdctl*"),
)
VPNS = ("tun*", "tap*", "wg*", "tailscale*", "zt*", "ppp*", "utun*", "nebula*")


class _Entry(Protocol):
    """What is read of ``psutil``'s address rows."""

    @property
    def family(self) -> int: ...
    @property
    def address(self) -> str: ...


def usable_addresses(networks: Sequence[str]) -> list[tuple[str, str]]:
    """(interface, address) of every address that may be bound and announced.

    Interfaces that are down, loopback and IPv6 link-local addresses are left out.

    Args:
        networks: CIDRs (``node.networks``) that an address must be in; empty: all.

    Returns:
        In the same order every time: by interface name, IPv4 before IPv6, then by number.
    """
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return select(psutil.net_if_addrs(), up, networks)


def select(
    rows: Mapping[str, Sequence[_Entry]], up: set[str], networks: Sequence[str]
) -> list[tuple[str, str]]:
    """``usable_addresses`` on given interfaces."""
    found = [
        (name, address)
        for name in up & rows.keys()
        if not _matches(name, BRIDGES)
        for address in _parsed(rows[name])
        if _usable(address) and (_within(address, networks) if networks else not _matches(name, VPNS))
    ]
    found.sort(key=lambda row: (row[0], row[1].version, int(row[1])))
    return [(name, str(address)) for name, address in found]


def allowed_local(address: str, networks: Sequence[str]) -> bool:
    """Whether a connection that was accepted on this local address may be served.

    For a listener on the wildcard address, which also hears container bridges. Loopback is always allowed.

    Args:
        address: the local end of the accepted connection.
        networks: CIDRs (``node.networks``); empty: all.
    """
    try:
        local = _plain(ip_address(address.partition("%")[0]))
    except ValueError:
        return False
    return local.is_loopback or any(str(local) == usable for _, usable in usable_addresses(networks))


@lru_cache(1024)
def is_loopback(address: str) -> bool:
    """Whether an address (of a caller) is this machine itself; also in IPv4-mapped form."""
    try:
        return _plain(ip_address(address.partition("%")[0])).is_loopback
    except ValueError:
        return False


def _plain(address: IPAddress) -> IPAddress:
    """An IPv4 address that a dual-stack socket shows as ``::ffff:a.b.c.d``, as itself."""
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _parsed(entries: Sequence[_Entry]) -> Iterator[IPAddress]:
    for entry in entries:
        if entry.family in (socket.AF_INET, socket.AF_INET6):
            yield ip_address(entry.address.partition("%")[0])


def _usable(address: IPAddress) -> bool:
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        return False
    return address.version == 4 or not address.is_link_local


def _within(address: IPAddress, networks: Sequence[str]) -> bool:
    return any(address in ip_network(network) for network in networks)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
