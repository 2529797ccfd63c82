"""Where status callbacks may go: ``policy.callbacks``.

Addresses that lead into this machine, to its neighbours on the wire or to a cloud's metadata service are
closed to names and to ``*``, whatever form they are written in: only a network in the list opens them.
Loopback is also open to callers on loopback.
"""

import ipaddress
import socket
from collections.abc import Iterator, Sequence

from edgeorch.addresses import IPAddress, is_loopback
from edgeorch.policy.patterns import Glob

KEY = "policy.callbacks"
_CLOSED = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local; AWS, Azure, Google and others
            "100.100.100.200",  # Alibaba
            "168.63.129.16",  # Azure
            "192.0.0.192",  # Oracle
            "224.0.0.0/4",
            "240.0.0.0/4",
            "::/127",
            "fe80::/10",
            "fd00:ec2::/32",  # AWS
            "fd20:ce::254",  # Google
            "fd00:c1::/32",  # Oracle
            "ff00::/8",
        ),
    )
)
_HOLD_IPV4 = tuple(map(ipaddress.ip_network, ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")))
"""Networks whose addresses end in the IPv4 address that they lead to."""


class CallbackTargets:
    """The list.

    Args:
        entries: networks (``192.168.1.0/24``), and names of hosts with ``*``.

    Raises:
        ValueError: an entry that is neither.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._networks = []
        self._names = []
        self._everything = "*" in entries
        for entry in entries:
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                named = entry == "*" or any(char.isalpha() for char in entry)
                if not named or "/" in entry or ":" in entry:
                    said = f"{entry!r} is neither a network (192.168.0.0/16) nor the name of a host"
                    raise ValueError(said) from None
                self._names.append(Glob(entry.lower().rstrip(".")))

    def refusal(self, host: str, address: str, *, loopback: bool) -> str:
        """Why a callback must not go to an address; empty where it may.

        Args:
            host: as the URL writes it.
            address: one that it has.
            loopback: whether the request for it came over loopback.
        """
        found = ipaddress.ip_address(address.partition("%")[0])
        found = getattr(found, "ipv4_mapped", None) or found
        if any(found in network for network in self._networks):
            return ""
        if not self._lists(host, address):
            return f"{KEY} does not list {_both(host, address)}"
        if is_loopback(address) and loopback:
            return ""
        if any(reading in network for reading in _readings(found) for network in _CLOSED):
            kind = "a loopback address" if is_loopback(address) else "no address for callbacks"
            return f"{KEY} does not list the network of {_both(host, address)}, which is {kind}"
        return ""

    def refusal_at_the_door(self, host: str, *, loopback: bool) -> str:
        """The same before the name is looked up: what can be said of it already."""
        local = host.lower().rstrip(".")
        if local == "localhost" or local.endswith(".localhost"):
            return self.refusal(host, "127.0.0.1", loopback=loopback)
        try:
            # all the ways to write an address, also 2130706433 and 0x7f.1
            found = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            if self._networks or self._lists(host, ""):
                return ""
            return f"{KEY} does not list {host}"
        return self.refusal(host, str(found[0][4][0]), loopback=loopback)

    def _lists(self, host: str, address: str) -> bool:
        """Whether the host is listed by its name; an address has none."""
        name = host.lower().rstrip(".")
        return self._everything or (name != address and any(known.matches(name) for known in self._names))


def _readings(address: IPAddress) -> Iterator[IPAddress]:
    """The address, and the IPv4 addresses that gateways make of it."""
    yield address
    if not isinstance(address, ipaddress.IPv6Address) or address.is_loopback or address.is_unspecified:
        return
    yield from filter(None, (address.sixtofour, *(address.teredo or ())))
    if any(address in network for network in _HOLD_IPV4):
        yield ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)


def _both(host: str, address: str) -> str:
    return host if host.strip("[]") == address else f"{host} ({address})"
