"""Single values that have a form of their own: ulimits, devices, links, restart policies, GPUs and so on.

Each function takes the text and returns what the Engine API wants, or raises ValueError.
"""

import re
from typing import Any

from edgeorch.docker_options import syntax

_CGROUP_RULE = re.compile(r"[acb] ([0-9]+|\*):([0-9]+|\*) [rwm]{1,3}", re.ASCII)
_ULIMITS = (
    *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss"),
    *("rtprio", "rttime", "sigpending", "stack"),
)
_SYSCTLS = (
    *("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax"),
    *("kernel.shmmni", "kernel.shm_rmid_forced"),
)


def stream(text: str) -> str:
    """A stream of ``--attach``."""
    if text.lower() not in ("stdin", "stdout", "stderr"):
        raise ValueError("must be stdin, stdout or stderr")
    return text.lower()


def environment(text: str) -> str:
    """``NAME=VALUE``; a bare ``NAME`` removes the image's variable, and takes nothing from the daemon."""
    if not text or text.startswith("="):
        raise ValueError("needs a name before the =")
    return text


def label(text: str) -> str:
    """``KEY[=VALUE]``."""
    key = text.partition("=")[0].lstrip(" \t")
    if not key or " " in key or "\t" in key:
        raise ValueError("needs a key without spaces")
    return text


def device(text: str) -> dict[str, str]:
    """``HOST[:CONTAINER][:rwm]`` to a ``DeviceMapping``."""
    host, *rest = text.split(":")
    permissions = "rwm"
    if len(rest) == 2 or (rest and _device_mode(rest[-1])):
        permissions = rest.pop()
        if not _device_mode(permissions):
            raise ValueError(f"has the mode {permissions!r}; use letters of rwm")
    container = rest[0] if rest else host
    if not host or len(rest) > 1 or not container.startswith("/"):
        raise ValueError("must be /dev/NAME[:/dev/NAME][:rwm]")
    if host.endswith("*"):
        raise ValueError("names several devices; name each of them")
    return {"PathOnHost": host, "PathInContainer": container, "CgroupPermissions": permissions}


def _device_mode(text: str) -> bool:
    return 0 < len(text) == len(set(text)) and set(text) <= set("rwm")


def cgroup_rule(text: str) -> str:
    """``TYPE MAJOR:MINOR MODE``."""
    if not _CGROUP_RULE.fullmatch(text):
        raise ValueError("must be like 'c 42:* rmw'")
    return text


def host_entry(text: str) -> str:
    """``NAME:IP``, also with ``=`` or brackets, or ``NAME:host-gateway``."""
    separator = "=" if "=" in text else ":"
    name, found, address = text.partition(separator)
    if not found or not name or ":" in name:
        raise ValueError("must be NAME:IP")
    if address != "host-gateway":
        if len(address) > 2 and address[0] == "[" and address[-1] == "]":
            address = address[1:-1]
        syntax.ip_address(address)
    return f"{name}:{address}"


def link(text: str) -> str:
    """``CONTAINER[:ALIAS]``."""
    if not text or text.count(":") > 1:
        raise ValueError("must be CONTAINER[:ALIAS]")
    return text


def sysctl(text: str) -> tuple[str, str]:
    """``KEY=VALUE`` of a kernel setting that belongs to a namespace."""
    key, equals, value = text.partition("=")
    if not equals or not (key in _SYSCTLS or key.startswith(("net.", "fs.mqueue."))):
        raise ValueError("is not a setting that a container may have")
    return key, value


def ulimit(text: str) -> dict[str, Any]:
    """``NAME=SOFT[:HARD]`` to a ``Ulimit``; -1 is unlimited."""
    name, equals, limits = text.partition("=")
    if not equals or name not in _ULIMITS:
        raise ValueError(f"must be NAME=SOFT[:HARD]; names are {', '.join(_ULIMITS)}")
    soft_text, colon, hard_text = limits.partition(":")
    soft = syntax.decimal(soft_text)
    hard = syntax.decimal(hard_text) if colon else soft
    if hard != -1 and (soft == -1 or soft > hard):
        raise ValueError("has a soft limit above the hard one")
    return {"Name": name, "Soft": soft, "Hard": hard}


def weight_device(text: str) -> dict[str, Any]:
    """``/dev/NAME:WEIGHT``, 10 to 1000 or 0."""
    path, value = _block_device(text)
    weight = syntax.decimal(value)
    if weight != 0 and not 10 <= weight <= 1000:
        raise ValueError("has a weight that is neither 0 nor 10 to 1000")
    return {"Path": path, "Weight": weight}


def bytes_rate(text: str) -> dict[str, Any]:
    """``/dev/NAME:SIZE`` per second."""
    path, value = _block_device(text)
    return {"Path": path, "Rate": syntax.size(value)}


def operations_rate(text: str) -> dict[str, Any]:
    """``/dev/NAME:COUNT`` per second."""
    path, value = _block_device(text)
    if not value.isascii() or not value.isdigit():
        raise ValueError("needs a whole number after the colon")
    return {"Path": path, "Rate": syntax.decimal(value)}


def _block_device(text: str) -> tuple[str, str]:
    path, colon, value = text.partition(":")
    if not colon or not path.startswith("/dev/"):
        raise ValueError("must be /dev/NAME:VALUE")
    return path, value


def restart(text: str) -> dict[str, Any]:
    """``no``, ``always``, ``unless-stopped`` or ``on-failure[:COUNT]`` to a ``RestartPolicy``."""
    name, colon, count = text.partition(":")
    if colon and not name:
        raise ValueError("needs a policy before the colon")
    return {"Name": name, "MaximumRetryCount": syntax.decimal(count) if count else 0}


def storage(text: str) -> tuple[str, str]:
    """``KEY=VALUE`` for the storage driver."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError("must be KEY=VALUE")
    return key, value


def gpus(text: str) -> dict[str, Any]:
    """``all``, a count, or ``device=…,capabilities=…,driver=…,options=…`` to a ``DeviceRequest``."""
    request: dict[str, Any] = {"Driver": "", "Count": 0, "DeviceIDs": None}
    request |= {"Capabilities": [["gpu"]], "Options": {}}
    seen: set[str] = set()
    for part in syntax.fields(text):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = "count", part
        if key in seen:
            raise ValueError(f"has {key!r} twice")
        seen.add(key)
        match key:
            case "count":
                request["Count"] = -1 if value == "all" else syntax.decimal(value)
            case "driver":
                request["Driver"] = value
            case "device":
                request["DeviceIDs"] = value.split(",")
            case "capabilities":
                request["Capabilities"] = [[*value.split(","), "gpu"]]
            case "options":
                request["Options"] = dict(map(syntax.pair, syntax.fields(value)))
            case _:
                raise ValueError(f"has the unknown key {key!r}")
    if not seen & {"count", "device"}:
        request["Count"] = 1
    return request
