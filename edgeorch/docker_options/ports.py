"""``--publish`` and ``--expose``."""

import ipaddress
import re

_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


def publish(text: str) -> list[tuple[str, dict[str, str]]]:
    """``[IP:][HOST:]CONTAINER[/PROTOCOL]`` or ``published=…,target=…,protocol=…`` to port and binding.

    Ports may be ranges of equal length; a host range for one container port lets the Engine choose.

    Returns:
        ``("80/tcp", {"HostIp", "HostPort"})`` for each container port.

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
    ports, _, protocol = container.partition("/")
    protocol = protocol.lower() or "tcp"
    if protocol not in ("tcp", "udp", "sctp"):
        raise ValueError(f"has the protocol {protocol!r}; use tcp, udp or sctp")
    first, last = port_range(ports)
    host_first, host_last = port_range(host) if host else (0, 0)
    count = last - first + 1
    if host and count > 1 and count != host_last - host_first + 1:
        raise ValueError("has ranges of different length")
    found: list[tuple[str, dict[str, str]]] = []
    for offset in range(count):
        host_port = str(host_first + offset) if host else ""
        if host and count == 1 and host_first != host_last:
            host_port = f"{host_first}-{host_last}"
        found.append((f"{first + offset}/{protocol}", {"HostIp": ip, "HostPort": host_port}))
    return found


def expose(text: str) -> list[str]:
    """``PORT[-PORT][/PROTOCOL]`` to the names of the ports.

    Raises:
        ValueError: what is wrong with it.
    """
    if ":" in text:
        raise ValueError("must be PORT[-PORT][/PROTOCOL], without an address or host port")
    ports, _, protocol = text.partition("/")
    first, last = port_range(ports)
    return [f"{port}/{protocol or 'tcp'}" for port in range(first, last + 1)]


def port_range(text: str) -> tuple[int, int]:
    """``80`` or ``8000-8010``."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"has {text[:40]!r} where a port or range of ports belongs")
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last <= 65535:
        raise ValueError(f"has the range {text!r}; ports go up to 65535 and the first comes first")
    return first, last


def _short_form(text: str) -> str:
    keys = {"published": "", "target": "", "protocol": "tcp"}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"has {part!r} where key=value belongs")
        if key in keys:
            keys[key] = value
    return f"{keys['published']}:{keys['target']}/{keys['protocol']}"
