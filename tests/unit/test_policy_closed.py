"""No combination of docker options slips past a policy: judged is what the Engine gets, not our facts."""

import functools
import math
import re

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from edgeorch.config import Config, Loaded, Policy
from edgeorch.docker_options import split
from edgeorch.errors import DockerOptionError, DriverError, PolicyError
from edgeorch.executor.container_body import body_for
from edgeorch.executor.driver import Launch
from edgeorch.executor.rules import NodeRules
from edgeorch.model import Caller, Cap, ContainerService, TaskSpec

CALLER = Caller(token="laptop", role="submit")
HARMLESS_SECURITY = {
    "no-new-privileges",
    "no-new-privileges=true",
    "no-new-privileges:true",
    "seccomp=builtin",
}
KNOWN = (
    "AutoRemove CapAdd CapDrop Dns DnsOptions DnsSearch ExtraHosts GroupAdd IpcMode Isolation "
    "Links LogConfig Mounts OomScoreAdj PidMode Privileged PublishAllPorts ReadonlyRootfs "
    "RestartPolicy Runtime SecurityOpt ShmSize StorageOpt Sysctls Tmpfs UTSMode UsernsMode "
    "VolumeDriver VolumesFrom BlkioWeight BlkioWeightDevice BlkioDeviceReadBps "
    "BlkioDeviceReadIOps BlkioDeviceWriteBps BlkioDeviceWriteIOps CgroupParent CpuPeriod "
    "CpuQuota CpuRealtimePeriod CpuRealtimeRuntime CpuShares CpusetCpus CpusetMems "
    "DeviceCgroupRules DeviceRequests Devices KernelMemory Memory MemoryReservation MemorySwap "
    "MemorySwappiness NanoCpus OomKillDisable PidsLimit Ulimits MaskedPaths ReadonlyPaths Init "
    "PortBindings Binds NetworkMode "
)
"""What the body may say of the host; a new word needs a look here and in ``docker_options.facts``."""

modes = st.sampled_from(
    ["host", "container:x", "container:x host", "", "private", "none", "Host", "bridge", "own"]
)
folders = st.sampled_from(
    [
        "/",
        "/etc",
        "/srv/data",
        "/srv/data/x",
        "//etc",
        "/srv/data/../../etc",
        "/run",
        "/var/run/docker.sock",
        "data",
        "cache-1",
    ]
)
capabilities = st.sampled_from(["ALL", "all", "NET_ADMIN", "cap_sys_admin", "SYS_TIME", ""])
devices = st.sampled_from(
    [
        "/dev/sda",
        "/dev/video0",
        "/dev/video0:/dev/sda:rwm",
        "/dev/video0/../sda",
        "/dev",
        "dev/sda:/dev/x",
        "/etc",
    ]
)
flags = st.sampled_from(["", "=true", "=1", "=T", "=false"])
fields = st.one_of(
    st.sampled_from(["type=bind", "type=BIND", "type=volume", "type=tmpfs", "type=npipe", "readonly", "ro"]),
    st.sampled_from(
        ["volume-driver=local", "volume-driver=odd", "bind-propagation=rshared", "volume-nocopy"]
    ),
    st.tuples(st.sampled_from(["source", "src", "Source"]), folders).map("=".join),
    st.tuples(st.sampled_from(["target", "dst", "destination"]), folders).map("=".join),
    st.sampled_from(["type", "o", "device", "Device"]).flatmap(
        lambda key: st.sampled_from(
            ["none", "bind", "rbind", "tmpfs", "nfs", "/etc", "etc", "/srv/data", ""]
        ).map(lambda value: f"volume-opt={key}={value}")
    ),
)
mounts = st.lists(fields, min_size=1, max_size=7).map(lambda parts: ",".join(f'"{part}"' for part in parts))
numbers = st.sampled_from(["-1", "0", "1", "1000", "50000", "100000", "1000000", "0x10"])
sizes = st.sampled_from(["-1", "0", "1", "32m", "64m", "128m", "1g", "16g"])
OPTIONS = {
    "volume": st.tuples(folders, folders, st.sampled_from(["", ":ro", ":rshared"])).map(
        lambda parts: f"{parts[0]}:{parts[1]}{parts[2]}"
    ),
    "mount": mounts,
    "tmpfs": folders,
    "volumes-from": st.sampled_from(["x", "x:ro"]),
    "volume-driver": st.sampled_from(["local", "odd", ""]),
    "network": modes
    | modes.map(lambda mode: f"name={mode},alias=a")
    | modes.map(lambda mode: f"name= {mode}"),
    "pid": modes,
    "ipc": modes,
    "uts": modes,
    "userns": modes,
    "cap-add": capabilities,
    "device": devices,
    "device-cgroup-rule": st.just("a *:* rwm"),
    "gpus": st.sampled_from(["all", "1", "driver=cdi,device=x", "device=0"]),
    "security-opt": st.sampled_from(
        [
            *("seccomp=unconfined", "apparmor=unconfined", "apparmor:unconfined", "systempaths=unconfined"),
            *(
                "label=disable",
                "no-new-privileges=false",
                "no-new-privileges",
                "seccomp=builtin",
                "seccomp=/etc/x",
            ),
        ]
    ),
    "cgroup-parent": st.sampled_from(["/", "x", ""]),
    "runtime": st.sampled_from(["runc", "odd", ""]),
    "log-driver": st.sampled_from(["syslog", "json-file", "none", ""]),
    "link": st.just("db"),
    "env-file": st.just("/etc/shadow"),
    "label-file": st.just("/etc/shadow"),
    "oom-score-adj": numbers,
    "cpus": st.sampled_from(["0.5", "2", "-1", "0"]),
    "cpu-quota": numbers,
    "cpu-period": numbers,
    "cpu-rt-runtime": numbers,
    "memory": sizes,
    "memory-swap": sizes,
    "entrypoint": st.just("sh"),
}
SHORT = {"volume": "v", "memory": "m"}
ALIAS = {"network": "net"}
FLAGS = ("privileged", "oom-kill-disable", "init", "read-only")


def spellings(name, value):
    """Every way to write an option."""
    names = [name, ALIAS.get(name, name)]
    ways = [[f"--{one}={value}"] for one in names] + [[f"--{one}", value] for one in names]
    if letter := SHORT.get(name):
        ways += [
            [f"-{letter}", value],
            [f"-{letter}{value}"],
            [f"-{letter}={value}"],
            [f"-it{letter}", value],
        ]
    return st.sampled_from(ways)


option = st.one_of(
    st.sampled_from(sorted(OPTIONS)).flatmap(
        lambda name: OPTIONS[name].flatmap(lambda text: spellings(name, text))
    ),
    st.tuples(st.sampled_from(FLAGS), flags).map(lambda pair: [f"--{pair[0]}{pair[1]}"]),
)
words = st.lists(option, min_size=1, max_size=4).map(
    lambda groups: [word for group in groups for word in group]
)
opened = st.builds(
    Policy,
    host_paths=st.sampled_from([(), ("/srv/data",)]),
    devices=st.sampled_from([(), ("/dev/video*",), ("gpus",)]),
    capabilities=st.sampled_from([(), ("NET_ADMIN",), ("CAP_SYS_TIME",)]),
    namespaces=st.sampled_from([(), ("network",), ("pid", "ipc")]),
    volumes=st.sampled_from([(), ("cache-*",)]),
    networks=st.sampled_from([(), ("o*",)]),
)


@functools.cache
def rules_of(policy):
    return NodeRules(Loaded(config=Config(policy=policy), path=None, origins={}), node="kitchen", drivers={})


def sent(policy, options, cap=None):
    """The body that the Engine would get, or None where the node refuses."""
    rules = rules_of(policy)
    try:
        _, image, args = split(["docker", "run", *options, "img"])
        service = ContainerService(image=image, options=tuple(options), args=args)
        rules.check(TaskSpec(name="x", service=(service,)), service, CALLER)
        resources = (cap or Cap()).resources
        launch = Launch(
            key="t.1",
            name="x",
            service=service,
            env={},
            cpus=resources.cpus,
            memory=resources.memory,
            output_max=1,
        )
        return body_for(launch, node_id="n", store_id="s", api_version=(1, 41), read_file=unread)
    except (PolicyError, DockerOptionError, DriverError):
        return None


def unread(path):
    raise AssertionError(f"{path} would be read")


def beyond(body, policy):
    """What the body asks of the host that the policy does not list: by the Engine's documentation."""
    host = body["HostConfig"]
    assert set(host) <= set(KNOWN.split())
    yield from (key for key in ("Privileged", "OomKillDisable", "VolumesFrom", "VolumeDriver") if host[key])
    yield from (
        key for key in ("Runtime", "CgroupParent", "DeviceCgroupRules", "CpuRealtimeRuntime") if host[key]
    )
    yield from (key for key in ("MaskedPaths", "ReadonlyPaths") if key in host)
    yield from (name for name in host["CapAdd"] or () if f"CAP_{name}" not in {
        f"CAP_{one.removeprefix('CAP_')}" for one in policy.capabilities})  # fmt: skip
    yield from (one for one in host["Devices"] if not re.fullmatch("/dev/video[^/]*", one["PathOnHost"])
                or "/dev/video*" not in policy.devices)  # fmt: skip
    yield from (one for one in host["DeviceRequests"] or () if "gpus" not in policy.devices or one["Driver"])
    networks = {host["NetworkMode"], *body["NetworkingConfig"]["EndpointsConfig"]}
    modes = [("network", one) for one in networks]
    modes += [("pid", host["PidMode"]), ("ipc", host["IpcMode"])]
    modes += [("uts", host["UTSMode"]), ("userns", host["UsernsMode"])]
    yield from ((kind, mode) for kind, mode in modes if mode == "host" and kind not in policy.namespaces)
    yield from ((kind, mode) for kind, mode in modes if mode.startswith("container:"))
    free = {"", "default", "bridge", "none", "host"}
    yield from (one for one in networks - free if not one.startswith("container:")
                and not (policy.networks and re.fullmatch("o[^/]*", one)))  # fmt: skip
    yield from (one for one in host["SecurityOpt"] or () if one not in HARMLESS_SECURITY)
    yield from (one for one in host["Links"] or () if networks & {"default", "bridge"})
    if host["LogConfig"]["Type"] not in {"", "json-file", "none"} or host["OomScoreAdj"] < 0:
        yield "log driver or score"
    folders = [text.split(":")[0] for text in host["Binds"] or () if text.count(":")]
    for mount in host["Mounts"]:
        if mount["Type"] == "bind" or mount.get("Source", "").startswith("/"):
            folders.append("/" + mount.get("Source", "").lstrip("/"))
        elif mount["Type"] == "volume" and mount.get("Source"):
            folders.append(mount["Source"])
        elif mount["Type"] not in {"volume", "tmpfs"}:
            yield mount
        driver = mount.get("VolumeOptions", {}).get("DriverConfig", {})
        if driver.get("Name", "local") not in {"", "local"}:
            yield mount
        options = driver.get("Options", {})
        if options.get("device") and (options.get("type") != "tmpfs" or "bind" in options.get("o", "")):
            folders.append("/" + options["device"].lstrip("/"))
            if options.get("type", "") not in {"", "none"}:
                yield mount
    yield from (folder for folder in folders if not opened_by(policy, folder))


def opened_by(policy, source):
    """Whether the policy lists a folder of the host or a volume."""
    return (policy.host_paths and re.fullmatch("/srv/data(/x)?", source)) or (
        policy.volumes and re.fullmatch("cache-[^/]*", source)
    )


@given(words, opened)
@example(["--network", "bridge", "--network", "host"], Policy())
@example(["--network", "none", "--network", "container:x host"], Policy(namespaces=("network",)))
@example(["--mount", "source=/etc,target=/x"], Policy())
@example(["--pid", "container:x host"], Policy(namespaces=("pid", "ipc")))
def test_what_is_not_listed_never_reaches_the_engine(options, policy):
    body = sent(policy, options)
    event("refused" if body is None else "sent")
    if body is not None:
        assert list(beyond(body, policy)) == [], options


@pytest.mark.parametrize(
    "options",
    [
        *(["--privileged"], ["--privileged=T"], ["-v/etc:/x"], ["-itv", "/etc:/x"], ["-v=/etc:/x:ro"]),
        *(["--mount", "type=bind,src=/etc,dst=/x"], ["--mount", '"type=BIND","source=/etc",target=/x']),
        *(["--mount", "dst=/x,volume-opt=device=/etc,volume-opt=type=none,volume-opt=o=bind"],),
        *(["--mount", 'dst=/x,volume-opt=device=etc,volume-opt=type=tmpfs,"volume-opt=o=ro,rbind"'],),
        *(["--mount", "dst=/x,volume-driver=odd"], ["--mount", "type=npipe,source=/x,dst=/x"]),
        *(["-v", "data:/x"], ["--mount", "source=data,target=/x"], ["--mount", "type=volume,src=d,dst=/x"]),
        *(["--volumes-from", "x"], ["--volumes-from=x:ro"], ["--volume-driver", "odd"]),
        *(["--network", "host"], ["--net=host"], ["--network", "name=host"], ["--net", "container:x"]),
        *(["--network", "web"], ["--net=name=web,alias=a"], ["--network", "own", "--link", "db"]),
        *(["--network=bridge", "--net=host"], ["--pid=host"], ["--pid", "container:x"], ["--ipc", "host"]),
        *(["--ipc", "container:x"], ["--uts", "host"], ["--userns", "host"], ["--cap-add", "all"]),
        *(["--cap-add=cap_sys_admin"], ["--device", "/dev/sda"], ["--device=/dev/null:/dev/sda:rwm"]),
        *(["--device-cgroup-rule", "a *:* rwm"], ["--gpus", "all"], ["--gpus", "driver=cdi,device=x"]),
        *(["--security-opt", "apparmor:unconfined"], ["--security-opt=systempaths=unconfined"]),
        *(["--security-opt", "seccomp=unconfined"], ["--security-opt", "label=disable"]),
        *(["--cgroup-parent", "/"], ["--runtime", "odd"], ["--link", "db:x"], ["--log-driver", "syslog"]),
        *(["--oom-score-adj=-1"], ["--oom-kill-disable"], ["--cpu-rt-runtime", "1000"]),
    ],
)
def test_each_of_these_alone_is_refused_by_policy(options):
    """Else the test above could pass because nothing dangerous was ever readable."""
    assert sent(Policy(), options) is None
    assert sent(Policy(privileged=True, host_paths=("/",)), options) is not None


limited = Policy(max_cpus=1.0, max_memory=64 << 20)


@given(words)
@example(["--cpu-period", "1000"])
@example(["-m", "32m", "--memory-swap", "-1"])
def test_every_container_is_within_the_limits(options):
    body = sent(limited, options, rules_of(limited).cap(CALLER))
    if body is None:
        return
    host = body["HostConfig"]
    quota = host["CpuQuota"] / (host["CpuPeriod"] or 100_000) if host["CpuQuota"] > 0 else math.inf
    assert min(host["NanoCpus"] / 10**9 or math.inf, quota) <= 1, options
    assert 0 < host["Memory"] <= 64 << 20, options
    assert 0 <= host["MemorySwap"] <= 128 << 20, options
