"""Options to the body of ``POST /containers/create`` (docs.docker.com/engine/api, v1.41)."""

from collections.abc import Sequence
from typing import Any

from edgeorch.docker_options import files, mounts, networks, pieces, ports, syntax
from edgeorch.docker_options.facts import facts_of
from edgeorch.docker_options.files import ReadFile
from edgeorch.docker_options.values import Values
from edgeorch.errors import DockerOptionError
from edgeorch.model import ContainerFacts

Body = dict[str, Any]


def parse(
    options: Sequence[str], image: str, args: Sequence[str] = (), *, read_file: ReadFile | None = None
) -> tuple[Body, ContainerFacts]:
    """Do what ``docker create OPTIONS IMAGE ARGS`` does before it talks to the Engine.

    Args:
        options: words before the image, as ``split`` gives them.
        image: the image.
        args: words after the image.
        read_file: reads the files that options name. None: they count as empty, which is enough to check a
            request on another node than the one that will run it.

    Returns:
        The body, and what the container wants from its host.

    Raises:
        DockerOptionError: the option that is unknown, unsupported, badly written, or in conflict.
    """
    if not image or any(char.isspace() for char in image):
        raise DockerOptionError(f"{image[:80]!r} is not the name of an image")
    values = Values(options)
    body = _config(values, read_file)
    body |= {"Image": image, "Cmd": list(args) or None}
    body["HostConfig"] = _host_config(values, read_file)
    bindings = _ports(values, body)
    body["HostConfig"]["PortBindings"] = bindings
    anonymous, binds = _volumes(values)
    body["Volumes"] = anonymous
    body["HostConfig"]["Binds"] = binds or None
    attached = values.each("network", networks.network)
    body["HostConfig"]["NetworkMode"] = attached[0].target if attached else "default"
    body["NetworkingConfig"] = {
        "EndpointsConfig": networks.endpoints(
            attached,
            aliases=values.all("network-alias"),
            links=values.each("link", pieces.link),
            local_ips=values.all("link-local-ip"),
            ip=values.text("ip"),
            ip6=values.text("ip6"),
        )
    }
    return body, facts_of(values, body)


def _config(values: Values, read_file: ReadFile | None) -> Body:
    attach = values.each("attach", pieces.stream)
    stdin = values.flag("interactive")
    attach_stdin = stdin or "stdin" in attach
    entrypoint = values.text("entrypoint")
    # as docker: of --env the last per name stays, and it stands after those of files, which it overrides
    variables = {text.partition("=")[0]: text for text in values.each("env", pieces.environment)}
    body: Body = {
        "Hostname": values.text("hostname"),
        "Domainname": values.text("domainname"),
        "User": values.text("user"),
        "WorkingDir": values.text("workdir"),
        "MacAddress": values.last("mac-address", _mac_or_empty, ""),
        "Tty": values.flag("tty"),
        "OpenStdin": stdin,
        "StdinOnce": stdin and attach_stdin,
        "AttachStdin": attach_stdin,
        "AttachStdout": not attach or "stdout" in attach,
        "AttachStderr": not attach or "stderr" in attach,
        # an empty --entrypoint clears the image's one
        "Entrypoint": [entrypoint] if "entrypoint" in values else None,
        "Env": [*_with_files("env-file", values, read_file), *variables.values()],
        "Labels": dict(
            map(
                syntax.pair, _with_files("label-file", values, read_file) + values.each("label", pieces.label)
            )
        ),
        "Healthcheck": _health(values),
    }
    if "stop-signal" in values:
        body["StopSignal"] = values.text("stop-signal")
    if "stop-timeout" in values:
        body["StopTimeout"] = values.integer("stop-timeout")
    return body


def _mac_or_empty(text: str) -> str:
    return syntax.mac_address(text) if text else ""


def _with_files(option: str, values: Values, read_file: ReadFile | None) -> list[str]:
    if read_file is None:
        return []
    return [line for path in values.all(option) for line in files.lines(option, path, read_file)]


def _health(values: Values) -> Body | None:
    numbers = {
        "Interval": values.last("health-interval", syntax.duration, 0),
        "Timeout": values.last("health-timeout", syntax.duration, 0),
        "StartPeriod": values.last("health-start-period", syntax.duration, 0),
        "Retries": values.integer("health-retries"),
    }
    command = values.text("health-cmd")
    wanted = bool(command) or any(numbers.values())
    if values.flag("no-healthcheck"):
        if wanted:
            raise DockerOptionError("--no-healthcheck and --health-* exclude each other")
        return {"Test": ["NONE"]}
    if not wanted:
        return None
    negative = [name for name, number in numbers.items() if number < 0]
    if negative:
        option = {
            "Interval": "interval",
            "Timeout": "timeout",
            "StartPeriod": "start-period",
            "Retries": "retries",
        }
        raise DockerOptionError(f"--health-{option[negative[0]]} cannot be negative")
    return {"Test": ["CMD-SHELL", command] if command else None, **numbers}


def _host_config(values: Values, read_file: ReadFile | None) -> Body:
    restart = values.last("restart", pieces.restart, pieces.restart("no"))
    if values.flag("rm") and restart["Name"] not in ("", "no"):
        raise DockerOptionError("--rm and --restart exclude each other")
    log_driver, log_options = values.text("log-driver"), values.all("log-opt")
    if log_driver == "none" and log_options:
        raise DockerOptionError("--log-opt: the log driver none takes no options")
    security, open_paths = _security(values, read_file)
    host: Body = {
        "AutoRemove": values.flag("rm"),
        "CapAdd": values.all("cap-add") or None,
        "CapDrop": values.all("cap-drop") or None,
        "Dns": values.each("dns", syntax.ip_address),
        "DnsOptions": values.all("dns-option"),
        "DnsSearch": values.each("dns-search", syntax.search_domain),
        "ExtraHosts": values.each("add-host", pieces.host_entry) or None,
        "GroupAdd": values.all("group-add") or None,
        "IpcMode": values.text("ipc"),
        "Isolation": values.text("isolation"),
        "Links": values.each("link", pieces.link) or None,
        "LogConfig": {"Type": log_driver, "Config": dict(map(syntax.pair, log_options))},
        "Mounts": values.each("mount", mounts.mount),
        "OomScoreAdj": values.integer("oom-score-adj"),
        "PidMode": values.last("pid", _pid_mode, ""),
        "Privileged": values.flag("privileged"),
        "PublishAllPorts": values.flag("publish-all"),
        "ReadonlyRootfs": values.flag("read-only"),
        "RestartPolicy": restart,
        "Runtime": values.text("runtime"),
        "SecurityOpt": security or None,
        "ShmSize": values.size("shm-size"),
        "StorageOpt": dict(values.each("storage-opt", pieces.storage)),
        "Sysctls": dict(values.each("sysctl", pieces.sysctl)),
        "Tmpfs": dict(values.each("tmpfs", mounts.tmpfs)),
        "UTSMode": values.last("uts", _host_mode, ""),
        "UsernsMode": values.last("userns", _host_mode, ""),
        "VolumeDriver": values.text("volume-driver"),
        "VolumesFrom": values.all("volumes-from") or None,
        **_resources(values),
    }
    if open_paths:
        host |= {"MaskedPaths": [], "ReadonlyPaths": []}
    if "init" in values:
        host["Init"] = values.flag("init")
    return host


def _resources(values: Values) -> Body:
    return {
        "BlkioWeight": values.last("blkio-weight", _unsigned_16, 0),
        "BlkioWeightDevice": values.each("blkio-weight-device", pieces.weight_device),
        "BlkioDeviceReadBps": values.each("device-read-bps", pieces.bytes_rate),
        "BlkioDeviceReadIOps": values.each("device-read-iops", pieces.operations_rate),
        "BlkioDeviceWriteBps": values.each("device-write-bps", pieces.bytes_rate),
        "BlkioDeviceWriteIOps": values.each("device-write-iops", pieces.operations_rate),
        "CgroupParent": values.text("cgroup-parent"),
        "CpuPeriod": values.integer("cpu-period"),
        "CpuQuota": values.integer("cpu-quota"),
        "CpuRealtimePeriod": values.integer("cpu-rt-period"),
        "CpuRealtimeRuntime": values.integer("cpu-rt-runtime"),
        "CpuShares": values.integer("cpu-shares"),
        "CpusetCpus": values.text("cpuset-cpus"),
        "CpusetMems": values.text("cpuset-mems"),
        "DeviceCgroupRules": values.each("device-cgroup-rule", pieces.cgroup_rule) or None,
        "DeviceRequests": values.each("gpus", pieces.gpus) or None,
        "Devices": values.each("device", pieces.device),
        "KernelMemory": values.size("kernel-memory"),
        "Memory": values.size("memory"),
        "MemoryReservation": values.size("memory-reservation"),
        "MemorySwap": values.last("memory-swap", syntax.swap, 0),
        "MemorySwappiness": values.last("memory-swappiness", _swappiness, -1),
        "NanoCpus": values.last("cpus", syntax.nano_cpus, 0),
        "OomKillDisable": values.flag("oom-kill-disable"),
        "PidsLimit": values.integer("pids-limit"),
        # of several limits with one name the last counts
        "Ulimits": list({limit["Name"]: limit for limit in values.each("ulimit", pieces.ulimit)}.values())
        or None,
    }


def _security(values: Values, read_file: ReadFile | None) -> tuple[list[str], bool]:
    """Security options for the Engine, and whether the usual system paths stay open."""
    found: list[str] = []
    open_paths = False
    for text in values.all("security-opt"):
        key, separator, value = text.partition("=" if "=" in text else ":")
        if not separator and text != "no-new-privileges":
            raise DockerOptionError(f"--security-opt {text[:80]!r} must be KEY=VALUE")
        if text == "systempaths=unconfined":
            open_paths = True
        elif key == "seccomp" and value not in ("unconfined", "builtin"):
            found.append(f"seccomp={files.seccomp(value, read_file)}" if read_file else text)
        else:
            found.append(text)
    return found, open_paths


def _ports(values: Values, body: Body) -> dict[str, list[dict[str, str]]]:
    """Fill ``ExposedPorts``; return the bindings."""
    published, exposed = values.each("publish", ports.publish), values.each("expose", ports.expose)
    count = sum(len(one.container) for one in published) + sum(len(one.container) for one in exposed)
    if count > ports.MOST:
        raise DockerOptionError(
            f"--publish and --expose name {count} ports; {ports.MOST} are allowed",
            hint="a container with --network host needs none of them",
        )
    bindings: dict[str, list[dict[str, str]]] = {}
    for group in published:
        for port, binding in group.bindings():
            bindings.setdefault(port, []).append(binding)
    names = [name for group in exposed for name in group.names()]
    body["ExposedPorts"] = {port: {} for port in [*bindings, *names]}
    return bindings


def _volumes(values: Values) -> tuple[dict[str, Body], list[str]]:
    written = dict(values.each("volume", mounts.volume))
    return {text: {} for text, source in written.items() if not source}, [
        text for text in written if written[text]
    ]


def _pid_mode(text: str) -> str:
    if text in ("", "host") or (text.startswith("container:") and len(text) > 10):
        return text
    raise ValueError("must be host or container:NAME")


def _host_mode(text: str) -> str:
    if text in ("", "host"):
        return text
    raise ValueError("must be host")


def _swappiness(text: str) -> int:
    number = syntax.integer(text)
    if not -1 <= number <= 100:
        raise ValueError("must be 0 to 100, or -1")
    return number


def _unsigned_16(text: str) -> int:
    return syntax.integer(text, low=0, high=65535)
