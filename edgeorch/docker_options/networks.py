"""``--network`` and the options of its endpoints."""

import re
from dataclasses import dataclass, field
from typing import Any

from edgeorch.docker_options import syntax
from edgeorch.errors import DockerOptionError

# docker takes a value for the long form as soon as it has something like key=value inside
_LONG_FORM = re.compile(r"\w+=\w+", re.ASCII)
_BUILT_IN = frozenset({"", "default", "bridge", "host", "none"})


def user_defined(network: str) -> bool:
    """Whether it is none of the networks that every Engine has, nor another container's."""
    return network not in _BUILT_IN and not network.startswith("container:")


@dataclass(slots=True)
class Attachment:
    """One network that the container joins."""

    target: str
    aliases: list[str] = field(default_factory=list)
    driver_opts: dict[str, str] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    link_local_ips: list[str] = field(default_factory=list)
    ip: str = ""
    ip6: str = ""

    @property
    def user_defined(self) -> bool:
        """Whether it is none of the networks that every Engine has."""
        return user_defined(self.target)

    def endpoint(self) -> dict[str, Any]:
        """``EndpointSettings`` of the Engine API; empty where there is nothing to say."""
        settings: dict[str, Any] = {}
        if self.aliases:
            settings["Aliases"] = self.aliases
        if self.driver_opts:
            settings["DriverOpts"] = self.driver_opts
        if self.links:
            settings["Links"] = self.links
        if self.ip or self.ip6 or self.link_local_ips:
            pairs = (
                ("IPv4Address", self.ip),
                ("IPv6Address", self.ip6),
                ("LinkLocalIPs", self.link_local_ips),
            )
            settings["IPAMConfig"] = {key: value for key, value in pairs if value}
        return settings


def network(text: str) -> Attachment:
    """A name, or ``name=…,alias=…,ip=…,ip6=…,driver-opt=KEY=VALUE``.

    Raises:
        ValueError: an unknown key, or no name.
    """
    if not _LONG_FORM.search(text):
        if not text.strip():
            raise ValueError("needs a name")
        return Attachment(text)
    attachment = Attachment("")
    for part in syntax.fields(text):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key:
            raise ValueError(f"has {part!r} where key=value belongs")
        _set(attachment, key, value)
    if not attachment.target:
        raise ValueError("needs a name")
    return attachment


def _set(attachment: Attachment, key: str, value: str) -> None:
    match key:
        case "name":
            attachment.target = value
        case "alias":
            attachment.aliases.append(value)
        case "ip":
            attachment.ip = value
        case "ip6":
            attachment.ip6 = value
        case "driver-opt":
            name, equals, setting = (piece.strip() for piece in value.partition("="))
            if not equals or not name:
                raise ValueError(f"has {value!r}; write driver-opt=KEY=VALUE")
            attachment.driver_opts[name] = setting
        case _:
            raise ValueError(f"has the unknown key {key!r}")


def endpoints(
    networks: list[Attachment],
    *,
    aliases: list[str],
    links: list[str],
    local_ips: list[str],
    ip: str,
    ip6: str,
) -> dict[str, dict[str, Any]]:
    """``EndpointsConfig`` of the Engine API.

    Args:
        networks: what ``--network`` gave, in order.
        aliases: ``--network-alias``; like the other old options it belongs to the first network.
        links: ``--link``.
        local_ips: ``--link-local-ip``.
        ip: ``--ip``.
        ip6: ``--ip6``.

    Raises:
        DockerOptionError: options that contradict each other.
    """
    first = networks[0] if networks else Attachment("default")
    if aliases and first.aliases:
        raise DockerOptionError("--network-alias and alias= in --network exclude each other")
    if ip and first.ip:
        raise DockerOptionError("--ip and ip= in --network exclude each other")
    if ip6 and first.ip6:
        raise DockerOptionError("--ip6 and ip6= in --network exclude each other")
    first.aliases = aliases or first.aliases
    # elsewhere a link is the Engine's old kind, which stands in the host part of the body alone
    first.links = links if first.user_defined else []
    first.link_local_ips = local_ips
    first.ip = ip or first.ip
    first.ip6 = ip6 or first.ip6
    found: dict[str, dict[str, Any]] = {}
    for attachment in networks or [first]:
        if attachment.aliases and not attachment.user_defined:
            raise DockerOptionError(
                "--network-alias: aliases work on user-defined networks only",
                hint="make one with docker network create and name it in --network",
            )
        if attachment.target in found:
            raise DockerOptionError(f"--network: {attachment.target!r} is given twice")
        found[attachment.target] = attachment.endpoint()
    if len({attachment.user_defined for attachment in networks}) > 1:
        raise DockerOptionError("--network: built-in and user-defined networks cannot be mixed")
    if len(found) == 1 and not any(found.values()):
        return {}
    return found
