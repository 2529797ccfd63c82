"""The same arguments through the real ``docker create`` and through our parser: the containers must agree."""

import json
import re
import shlex
from pathlib import Path

import pytest
from docker import APIClient
from docker.errors import APIError
from docker_images import BUSYBOX, busybox_image, docker, inspect, matching_docker, remove

from edgeorch.docker_options import OPTIONS, UNSUPPORTED, parse, split
from edgeorch.errors import DockerOptionError

pytestmark = pytest.mark.docker

NETWORK = "edgeorch-differential"

# one line each: options as words; the image and its arguments are added
SINGLE = """
-a stdout
--attach=STDERR -a stdin
--device /dev/null
--device /dev/null:/dev/zero
--device /dev/null:rw
--device /dev/null:/dev/mynull:r
--device-cgroup-rule 'c 42:* rmw'
--domainname example.org
--entrypoint /bin/echo
--entrypoint=
-e A=1
-eA=1
-e=A=1
--env A=
--env NOT_SET_ANYWHERE
--env-file {files}/env
--env-file {files}/env -e A=3
--gpus all
--gpus 2
--gpus '"device=0,1",capabilities=utility'
--gpus device=GPU-1,driver=nvidia,count=1
--group-add 100 --group-add audio
-h box
--hostname box.example
-i
-it
--interactive --tty=false
-l a=b --label c -l 'd=e f'
--label-file {files}/labels
--label-file {files}/labels --label one=override
--read-only
--read-only=0
--restart no
--restart always
--restart on-failure:3
--restart unless-stopped
--restart ''
--rm
--stop-signal SIGUSR1
--stop-timeout 5
--sysctl net.ipv4.ip_forward=1 --sysctl kernel.shmmax=1000
--tty
--ulimit nofile=1024:2048 --ulimit nproc=10 --ulimit core=-1
--ulimit nofile=10 --ulimit nofile=20
-u 1000:1000
--user nobody
-w /tmp
--workdir=/srv
--cap-add NET_ADMIN --cap-add SYS_TIME
--cap-drop ALL
--privileged
--security-opt no-new-privileges
--security-opt no-new-privileges:true
--security-opt seccomp=unconfined
--security-opt seccomp={files}/seccomp.json
--security-opt apparmor=unconfined
--security-opt label=disable
--security-opt systempaths=unconfined
--userns host
--add-host a:10.0.0.1 --add-host b:::1
--add-host gateway:host-gateway
--dns 1.1.1.1 --dns 2001:db8:0:0::1
--dns-option ndots:2
--dns-opt timeout:1
--dns-search example.org --dns-search .
--expose 80
--expose 8000-8003/udp --expose 53/tcp
--network {network} --ip 172.30.99.9
--net {network} --ip6 2001:db8::9
--link-local-ip 169.254.1.1 --network {network}
--network {network} --mac-address 92:d0:c6:0a:29:33
--network none
--network host
--network=container:nobody
--network bridge
--network {network}
--network {network} --network-alias web --network-alias www
--net {network} --net-alias web
--network name={network},alias=web,alias=www
--network name={network},driver-opt=com.example.a=1
-p 80
-p 8080:80
-p 127.0.0.1:8080:80/udp
-p 127.0.0.1::80
-p [::1]:8080:80
-p 8000-8003:9000-9003
-p 8000-8010:80
-p 80:80 -p 81:80
--publish published=8080,target=80,protocol=udp
--publish published=8080,target=80
-P
--publish-all --expose 99
--log-driver none
--log-driver local --log-opt max-size=10m
--log-driver json-file --log-opt max-size=1m --log-opt max-file=2
--log-opt tag
--mount type=bind,source=/tmp,target=/mnt
--mount type=bind,src=/tmp,dst=/mnt,ro
--mount type=bind,src=/tmp,destination=/mnt,readonly=false,bind-propagation=rslave
--mount type=bind,src=/tmp,dst=/mnt,bind-nonrecursive
--mount type=volume,source=edgeorch-differential,target=/data,volume-nocopy
--mount source=edgeorch-differential,target=/data,volume-label=a=b,volume-driver=local
--mount 'dst=/data,volume-driver=local,"volume-opt=o=size=1m,uid=1",volume-opt=type=tmpfs,volume-opt=device=x'
--mount type=tmpfs,target=/tmp,tmpfs-size=64m,tmpfs-mode=1770
--mount type=bind,source=/tmp,target=/mnt,consistency=cached
--storage-opt size=1G
--tmpfs /run
--tmpfs /run:rw,size=64k,mode=1777 --tmpfs /tmp
-v /tmp:/mnt
-v /tmp:/mnt:ro,rslave
--volume /data
-v edgeorch-differential:/data:nocopy
-v /tmp:/a -v /tmp:/b -v /c
--volume-driver local -v /data
--volumes-from {helper}
--volumes-from {helper}:ro
--health-cmd 'true || false'
--health-cmd true --health-interval 30s --health-timeout 1m30s --health-retries 3 --health-start-period 500ms
--health-interval 1.5s
--no-healthcheck
--blkio-weight 300
--blkio-weight 0
--blkio-weight-device /dev/null:100
--cpu-period 50000
--cpu-quota 20000
--cpu-rt-period 1000000
--cpu-rt-runtime 950000
-c 512
--cpu-shares 0x200
--cpus 0.5
--cpus=1/4
--cpus 1.5e0
--cpuset-cpus 0
--cpuset-cpus 0-1
--cpuset-mems 0
--device-read-bps /dev/null:1mb
--device-read-iops /dev/null:1000
--device-write-bps /dev/null:1024
--device-write-iops /dev/null:10
--kernel-memory 50m
-m 64m
-m64m
-m=64MiB
--memory 1.5g
--memory 67108864
--memory '64 m'
--memory 64m --memory-reservation 32m
--memory 64m --memory-swap 128m
--memory 64m --memory-swap -1
--memory-swap=-1
--memory-swappiness 0
--memory-swappiness -1
--memory-swappiness 60
--oom-kill-disable
--oom-kill-disable -m 64m
--oom-score-adj 500
--oom-score-adj=-500
--pids-limit 100
--pids-limit -1
--cgroup-parent /edgeorch
--init
--init=false
--init=T
--ipc host
--ipc private
--ipc shareable
--ipc container:{helper}
--isolation default
--isolation ''
--pid host
--pid container:{helper}
--runtime runc
--shm-size 128m
--uts host
--
"""

TOGETHER = """
-v /var/run:/var/run:rw
-it --rm -e TERM=xterm -w /work -v /tmp:/work
-it=false
--rm --network none --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges -u 1000
-p 80:80 -p 443:443 -v web:/usr/share/web:ro --restart unless-stopped --memory 128m --cpus 0.5
--network host --privileged -v /dev:/dev -v /sys:/sys:ro --device /dev/null
-e A=1 -e B=2 -e A=3 -l app=x -l tier=y --log-driver json-file --log-opt max-size=10m
--init --stop-timeout 30 --stop-signal SIGINT --ulimit nofile=65536:65536 --pids-limit 200
--mount type=bind,src=/tmp,dst=/in,readonly --mount type=tmpfs,dst=/out --shm-size 1g
--network {network} --ip 172.30.99.10 --network-alias db --hostname db --dns 10.0.0.1 --dns-search lan
--network name={network},alias=a --expose 5432 -P
--cpuset-cpus 0 --cpu-shares 512 --memory 256m --memory-swap 512m --memory-reservation 64m
--health-cmd 'cat /ok' --health-interval 10s --health-retries 5 --restart on-failure:5
--env-file {files}/env --label-file {files}/labels -e EXTRA=1 --label extra=1
--pid host --ipc host --uts host --network host --userns host
--cap-add SYS_PTRACE --security-opt seccomp=unconfined --security-opt apparmor=unconfined --pid host
--device /dev/null:/dev/a --device /dev/zero:/dev/b:r --group-add video --device-cgroup-rule 'c 81:* rw'
--gpus all --shm-size 2g --ulimit memlock=-1 --ulimit stack=67108864 --ipc=host
--entrypoint /bin/sh -e X=y
--entrypoint= -u 0:0 -w / -h h -c 100 -m 32m
-P -i -t -e A -l b
--link {helper}:db
--link {helper} --ipc none
--blkio-weight 5 --ipc odd --network name=
-v a1:/a -v b1:/b:ro --volumes-from {helper} --volume-driver local
--add-host registry:10.0.0.5 --dns-option ndots:1 --domainname lan
--sysctl net.core.somaxconn=1024 --tmpfs /run:size=1m --storage-opt size=10G
-itu1000 -w/tmp -eA=b -p8080:80
"""

REFUSED = """
--unknown-option
-Z
--memory
--memory lots
--memory=-1
--memory 1q
--memory 1m
--memory-swappiness 500
--memory-swap 1x
--memory 64m --memory-swap 32m
--memory-reservation 128m --memory 64m
--blkio-weight 70000
--blkio-weight-device null:100
--blkio-weight-device /dev/null:5
--cpus many
--cpus 0.0000000001
--cpus 1/0
--cpus 1000
--cpus 0.5 --cpu-quota 10000
--cpu-shares x
--cpu-period 5
--cpuset-cpus 77
--device relative
--device /dev/a:/dev/b:xyz
--device /dev/a:/dev/b:r:w
--device-cgroup-rule 'x 1:1 r'
--device-read-bps /dev/null
--device-read-bps /dev/null:-5
--device-read-iops /dev/null:fast
--dns nowhere
--dns-search 1.2
--add-host justname
--add-host a:b
--attach nothing
-e =x
--env-file {files}/absent
--env-file {files}/badenv
--label ''
--label-file {files}/absent
--expose 80:80
--expose 90-80
--gpus some
--gpus count=1,count=2
--health-cmd true --health-interval=-5s
--health-cmd true --health-retries=-1
--health-interval 5
--no-healthcheck --health-cmd true
--init=maybe
--isolation hyperv
--link a:b:c
--log-driver none --log-opt a=b
--log-driver nosuchdriver
--log-opt nosuch=1
--mac-address zz
--mount type=bind,source=/tmp
--mount target
--mount type=bind,source=/tmp,target=/a,volume-nocopy
--mount type=bind,source=/no/such/folder,target=/a
--mount type=nosuch,target=/a
--mount type=bind,source=/tmp,target=/a,colour=red
--mount type=tmpfs,target=/a,tmpfs-size=x
--network {network} --network-alias a --network name={network}
--network none --network {network}
--network container:
--network host --publish-all --link {helper}
--oom-score-adj x
--oom-score-adj 5000
--pid other
--pids-limit many
-p 80:
-p abc
-p 1.2.3:80:80
-p 80-90:80-85
-p 70000
-p 80/icmp
--publish target=80,nonsense
--restart always:x
--restart sometimes
--restart always:3
--rm --restart always
--runtime nosuchruntime
--security-opt nothing
--security-opt seccomp={files}/absent
--security-opt seccomp={files}/env
--security-opt colour=red
--shm-size x
--shm-size=-1
--stop-signal SIGNOTHING
--stop-timeout x
--storage-opt nothing
--sysctl kernel.hostname=x
--sysctl net
--tmpfs relative
--ulimit nofile
--ulimit colour=1
--ulimit nofile=5:4
--ulimit nofile=-1:4
--userns other
--uts other
-v a::b
-v /a:/b:/c:/d
-v relative/path:/a
-v /tmp:relative
--volumes-from {helper}-absent
--cpu-count 1
--cpu-percent 5
--io-maxbandwidth 1m
--io-maxiops 5
"""

# What docker commands of different age do differently: the oldest and newest one that does it our way.
BY_AGE = {
    "--network-alias a": (25, 99, "refused"),  # an old one ignores aliases without a network
    "--ip 10.0.0.1": (25, 99, "created"),  # an old one drops the address; at start the Engine refuses it
    "--network bridge --link {helper}": (25, 99, "created"),
    "--restart :3": (25, 99, "refused"),
    "--add-host nas=10.0.0.6": (25, 99, "created"),
    "--network {network} --mac-address 92:d0:c6:0a:29:33": (0, 24, "created"),  # a new one wants API 1.44
}
# Whether these can be created depends on the host's file system and kernel.
HOST_DECIDES = (
    "--storage-opt",
    "--cpu-rt",
    "--kernel-memory",
    "--blkio",
    "--userns",
    "--security-opt apparmor",
)


def lines(table):
    return [line for line in table.strip().splitlines() if line]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The names that the tables use, made once: a network, a container to share with, option files."""
    busybox_image()
    files = tmp_path_factory.mktemp("files")
    (files / "env").write_text("# comment\n\nONE=1\n  TWO= 2 \nA=2\nBARE\n")
    (files / "badenv").write_text("WITH SPACE=1\n")
    (files / "labels").write_text("one=1\ntwo\n")
    (files / "seccomp.json").write_text(
        json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}, indent=2)
    )
    docker("network", "rm", NETWORK, check=False)
    subnets = ("--subnet", "172.30.99.0/24", "--ipv6", "--subnet", "2001:db8::/64")
    docker("network", "create", *subnets, NETWORK)
    helper = docker("create", "--network", "none", "-v", "/shared", BUSYBOX, "true").stdout.strip()
    yield {"files": str(files), "network": NETWORK, "helper": helper}
    remove(helper)
    docker("network", "rm", NETWORK)
    docker("volume", "rm", "-f", "edgeorch-differential", "web", "a1", "b1", check=False)


@pytest.fixture(scope="module")
def command():
    return matching_docker()


@pytest.fixture(scope="module")
def engine():
    client = APIClient(version="auto")
    yield client
    client.close()


@pytest.fixture(scope="module")
def trash():
    """Containers to remove at the end, in one go."""
    ids = []
    yield ids
    remove(*ids)


def words(line, world):
    return [word.format(**world) if "{" in word else word for word in shlex.split(line)]


def theirs(command, trash, options, rest):
    answer = docker("create", *options, *rest, check=False, command=command[0])
    if answer.returncode != 0:
        return None, answer.stderr
    trash.append(answer.stdout.strip())
    return trash[-1], ""


def ours(engine, trash, options, rest):
    try:
        body, _ = parse(
            *split(["docker", "run", *options, *rest]), read_file=lambda path: Path(path).read_bytes()
        )
        trash.append(engine.create_container_from_config(body)["Id"])
    except (DockerOptionError, APIError) as error:
        return None, str(error)
    return trash[-1], ""


UNIMPORTANT = (
    "Id",
    "Name",
    "Created",
    "State",
    "GraphDriver",
    "ResolvConfPath",
    "HostnamePath",
    "HostsPath",
    "LogPath",
)


def normal(container):
    """What ``docker inspect`` says, without ids, names and times; empty values of any type are the same."""
    short = container["Id"][:12]
    for key in UNIMPORTANT:
        container.pop(key, None)
    if container["Config"]["Hostname"] == short:
        del container["Config"]["Hostname"]
    for mount in container["Mounts"]:
        if len(mount.get("Name", "")) == 64:
            mount["Name"] = mount["Source"] = "anonymous"
    container["Mounts"].sort(key=lambda mount: mount["Destination"])
    host = container["HostConfig"]
    for values in (host["Binds"], host["Ulimits"], container["Config"]["Env"]):
        (values or []).sort(key=str)
    for key in ("CapAdd", "CapDrop"):  # a new docker adds the prefix that the Engine would add anyway
        host[key] = sorted(
            name if name == "ALL" else f"CAP_{name.removeprefix('CAP_')}" for name in host[key] or ()
        )
    # /linked:/own-name/alias
    host["Links"] = [[link.split("/")[1], link.split("/")[-1]] for link in host["Links"] or ()]
    for endpoint in container["NetworkSettings"]["Networks"].values():
        endpoint["Aliases"] = [alias for alias in endpoint["Aliases"] or () if alias != short]
        endpoint.pop("DNSNames", None)
    return pruned(container)


def pruned(value):
    if isinstance(value, dict):
        found = {key: pruned(inner) for key, inner in value.items()}
        return {key: inner for key, inner in found.items() if inner not in (None, [], {})}
    if isinstance(value, list):
        return [pruned(inner) for inner in value]
    return value


def compare(command, engine, trash, options, rest):
    left, left_error = theirs(command, trash, options, rest)
    right, right_error = ours(engine, trash, options, rest)
    assert (left is None) == (right is None), (
        f"docker: {left_error or 'created'}; ours: {right_error or 'created'}"
    )
    if left is not None:
        one, two = inspect(left, right)
        assert normal(one) == normal(two)
    return left is not None


@pytest.mark.parametrize("line", [line for line in lines(SINGLE) + lines(TOGETHER) if line not in BY_AGE])
def test_same_container(line, world, command, engine, trash):
    created = compare(command, engine, trash, words(line, world), [BUSYBOX, "echo", "hi"])
    assert created or any(option in line for option in HOST_DECIDES)


@pytest.mark.parametrize("line", lines(REFUSED))
def test_refused_by_both(line, world, command, engine, trash):
    options = words(line, world)
    missing_value = options == ["--memory"]
    rest = [] if missing_value else [BUSYBOX, "true"]
    assert not compare(command, engine, trash, options, rest)


@pytest.mark.parametrize("line", BY_AGE)
def test_where_dockers_differ(line, world, command, engine, trash):
    oldest, newest, outcome = BY_AGE[line]
    options, rest = words(line, world), [BUSYBOX, "true"]
    if oldest <= command[1] <= newest:
        assert compare(command, engine, trash, options, rest) == (outcome == "created")
    else:
        assert (ours(engine, trash, options, rest)[0] is not None) == (outcome == "created")


@pytest.mark.parametrize(
    "rest",
    [
        [BUSYBOX],
        [BUSYBOX, "echo", "--rm", "-d", "--", "x=y"],
        ["--", BUSYBOX, "--", "-x"],
        [BUSYBOX, "sh", "-c", "echo $HOME; echo ü"],
        [BUSYBOX, ""],
    ],
)
def test_arguments_after_the_image(rest, command, engine, trash):
    compare(command, engine, trash, ["--network", "none"], rest)


@pytest.mark.parametrize("image", ["no/such:image", "UPPER", "a b", "-", "x" * 300])
def test_no_such_image(image, engine, trash):
    assert ours(engine, trash, [], [image])[0] is None


def test_every_supported_option_is_compared():
    text = f"{SINGLE}{TOGETHER}"
    absent = []
    for option in OPTIONS:
        names = "|".join((option.name, *option.aliases))
        if not re.search(rf"(^| )(--({names})\b|-{option.short or '-'})", text, re.MULTILINE):
            absent.append(option.name)
    assert absent == []
    assert not {option.name for option in OPTIONS} & set(UNSUPPORTED)
