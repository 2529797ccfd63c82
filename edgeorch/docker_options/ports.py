"""``--publish`` and ``--expose``."""

import ipaddress
import re
from collections.abc import Iterator
from typing import NamedTuple

MOST = 1000
"""Ports of one container. The Engine starts a process for each, and a range of all of them is a few bytes."""
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


class Published(NamedTuple):
    """Ports of a container that the host has, too.

    Attributes:
        container: their numbers.
        protocol: ``tcp``, ``udp`` or ``sctp``.
        ip: the host's address, empty for all.
        host: the host's ports: as many, or for one port several to choose from, or None: the Engine chooses.
    """

    container: range
    protocol: str
    ip: str
    host: range | None

    def bindings(self) -> Iterator[tuple[str, dict[str, str]]]:
        """``("80/tcp", {"HostIp", "HostPort"})`` for each of them."""
        for offset, port in enumerate(self.container):
            if self.host is None:
                host_port = ""
            elif len(self.host) > len(self.container):
                host_port = f"{self.host[0]}-{self.host[-1]}"
            else:
                host_port = str(self.host[offset])
            yield f"{port}/{self.protocol}", {"HostIp": self.ip, "HostPort": host_port}


class Exposed(NamedTuple):
    """Ports of a container that are announced only."""

    container: range
    protocol: str

    def names(self) -> Iterator[str]:
        """``80/tcp`` for each of them."""
        return (f"{port}/{self.protocol}" for port in self.container)


def publish(text: str) -> Published:
    """``[IP:][HOST:]CONTAINER[/PROTOCOL]`` or ``published=…,target=…,protocol=…``.

    Ports may be ranges of equal length; a host range for one container port lets the Engine choose.

    Raises:
        ValueError: what is wrong with it.
    """
    if "=" in text:
        text = _short_form(text)
    *before, container = text.split(":")
    host = before.pop() if before else ""
    ip = ":".join(before)
    if ip.startswith("[") and ip.endswith("]"):
        ip = ip[1:-1]
    if ip:
        try:
            ipaddress.ip_address(ip)
        except ValueError:
            raise ValueError(f"has {ip!r}, which is not an IP address") from None
    numbers, _, protocol = container.partition("/")
    protocol = protocol.lower() or "tcp"
    if protocol not in ("tcp", "udp", "sctp"):
        raise ValueError(f"has the protocol {protocol!r}; use tcp, udp or sctp")
    ports = port_range(numbers)
    host_ports = port_range(host) if host else None
    if host_ports is not None and len(ports) not in (1, len(host_ports)):
        raise ValueError("has ranges of different length")
    return Published(ports, protocol, ip, host_ports)


def expose(text: str) -> Exposed:
    """``PORT[-PORT][/PROTOCOL]``.

    Raises:
        ValueError: what is wrong with it.
    """
    if ":" in text:
        raise ValueError("must be PORT[-PORT][/PROTOCOL], without an address or host port")
    ports, _, protocol = text.partition("/")
    return Exposed(port_range(ports), protocol or "tcp")


def port_range(text: str) -> range:
    """``80`` or ``8000-8010``."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"has {text[:40]!r} where a port or range of ports belongs")
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last <= 65535:
        raise ValueError(f"has the range {text!r}; ports go up to 65535 and the first comes first")
    return range(first, last + 1)


def _short_form(text: str) -> str:
    keys = {"published": "", "target": "", "protocol": "tcp"}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"has {part!r} where key=value belongs")
        if key in keys:
            keys[key] = value
    return f"{keys['published']}:{keys['target']}/{keys['protocol']}"
