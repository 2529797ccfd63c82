"""What a container wants from its host, read off its options: the input of the node's policy."""

import math
from collections.abc import Iterable
from typing import Any

from edgeorch.docker_options.networks import user_defined
from edgeorch.docker_options.values import Values
from edgeorch.model import ContainerFacts

_HARMLESS_SECURITY = frozenset(
    {"no-new-privileges", "no-new-privileges=true", "no-new-privileges:true", "seccomp=builtin"}
)
_LOCAL_LOG_DRIVERS = frozenset({"", "json-file", "local", "journald", "none"})
_CPU_PERIOD = 100_000
"""Microseconds; the kernel's own."""
_NO_BACKING = frozenset({"tmpfs"})
_BEYOND = ("volumes-from", "cgroup-parent", "runtime", "volume-driver", "device-cgroup-rule")


def facts_of(values: Values, body: dict[str, Any]) -> ContainerFacts:
    """Collect the facts. ``body`` is what ``parse`` made of ``values``."""
    host = body["HostConfig"]
    mounted, other = _mounts(host["Mounts"])
    sources = [text.partition(":")[0] for text in host["Binds"] or ()]
    binds = [source for source in sources if source.startswith("/")]
    volumes = [source for source in sources if not source.startswith("/")]
    security = values.all("security-opt")
    return ContainerFacts(
        binds=(*binds, *mounted),
        volumes=(*volumes, *_named(host["Mounts"])),
        networks=tuple(_networks(host, body["NetworkingConfig"]["EndpointsConfig"])),
        privileged=host["Privileged"],
        namespaces=tuple(_namespaces(host, body["NetworkingConfig"]["EndpointsConfig"])),
        capabilities=tuple(values.all("cap-add")),
        devices=(*values.all("device"), *_written(values, "gpus")),
        security_opts=tuple(text for text in security if text not in _HARMLESS_SECURITY),
        other=(*other, *_other(values, host)),
        cpus=_cpus(host),
        memory=host["Memory"],
        memory_swap=math.inf if host["MemorySwap"] < 0 else host["MemorySwap"],
        option_files=(*values.all("env-file"), *values.all("label-file"), *_profiles(security)),
    )


def _written(values: Values, *names: str) -> tuple[str, ...]:
    return tuple(f"--{name} {text}" for name in names for text in values.all(name))


def _networks(host: dict[str, Any], endpoints: Iterable[str]) -> list[str]:
    joined = dict.fromkeys((host["NetworkMode"], *endpoints))
    return [name for name in joined if user_defined(name)]


def _namespaces(host: dict[str, Any], endpoints: Iterable[str]) -> list[str]:
    modes = [
        ("network", host["NetworkMode"]),
        *(("network", network) for network in endpoints if network != host["NetworkMode"]),
        ("pid", host["PidMode"]),
        ("ipc", host["IpcMode"]),
        ("uts", host["UTSMode"]),
        ("userns", host["UsernsMode"]),
    ]
    shared = ((name, mode) for name, mode in modes if mode == "host" or mode.startswith("container:"))
    return [f"--{name} {mode}" for name, mode in shared]


def _mounts(wanted: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Host paths behind ``--mount``, and what else is odd about it."""
    paths: list[str] = []
    other: list[str] = []
    for mount in wanted:
        # a volume of that name is none; what an Engine makes of it is not ours to guess
        if mount["Type"] == "bind" or mount.get("Source", "").startswith("/"):
            paths.append(_absolute(mount.get("Source", "")))
        if mount["Type"] not in ("bind", "volume", "tmpfs"):
            other.append(f"--mount type={mount['Type']}")
        driver = mount.get("VolumeOptions", {}).get("DriverConfig", {})
        if driver.get("Name", "") not in ("", "local"):
            other.append(f"--mount volume-driver={driver['Name']}")
        # the local driver mounts whatever its options name: a folder of the host, a disk, a network share
        options = driver.get("Options", {})
        kind = options.get("type", "")
        if options.get("device") and (kind not in _NO_BACKING or "bind" in options.get("o", "")):
            paths.append(_absolute(options["device"]))
            if kind not in ("", "none"):
                other.append(f"--mount volume-opt=type={kind}")
    return paths, other


def _named(wanted: list[dict[str, Any]]) -> list[str]:
    names = [mount.get("Source", "") for mount in wanted if mount["Type"] == "volume"]
    return [name for name in names if name and not name.startswith("/")]


def _absolute(path: str) -> str:
    """The Engine's own working folder is the root."""
    return path if path.startswith("/") else f"/{path}"


def _other(values: Values, host: dict[str, Any]) -> list[str]:
    found = list(_written(values, *_BEYOND))
    if host["NetworkMode"] in ("default", "bridge"):
        # there a link hands over the other container's variables
        found += _written(values, "link")
    for asked in host["DeviceRequests"] or ():
        if asked["Driver"] not in ("", "nvidia"):
            found.append(f"--gpus driver={asked['Driver']}")
    if host["LogConfig"]["Type"] not in _LOCAL_LOG_DRIVERS:
        found.append(f"--log-driver {host['LogConfig']['Type']}")
    if host["OomKillDisable"]:
        found.append("--oom-kill-disable")
    if host["OomScoreAdj"] < 0:
        found.append(f"--oom-score-adj {host['OomScoreAdj']}")
    if host["CpuRealtimeRuntime"]:
        found.append(f"--cpu-rt-runtime {host['CpuRealtimeRuntime']}")
    return found


def _cpus(host: dict[str, Any]) -> float:
    """With a period alone, or a negative quota, the node could not set a limit of its own."""
    quota, period, nano = (float(host[key]) for key in ("CpuQuota", "CpuPeriod", "NanoCpus"))
    if nano < 0 or quota < 0 or (period and not quota):
        return math.inf
    return max(nano / 10**9, quota / (period or _CPU_PERIOD))


def _profiles(security: list[str]) -> list[str]:
    """Files named by ``--security-opt seccomp=FILE``."""
    pairs = (text.partition("=" if "=" in text else ":") for text in security)
    return [value for key, _, value in pairs if key == "seccomp" and value not in ("unconfined", "builtin")]
