"""``remove.yml``: nothing of ours is left; user and data stay unless they are to go."""

import pytest
from controller import eventually
from docker_images import busybox_image

# What a machine changes by itself, and what Ansible's own connection leaves in its user's home.
OTHERS = (
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/tmp",
    "/var/tmp",
    "/var/log",
    "/var/lib/docker",
    "/var/lib/systemd",
)
OTHERS += ("/home/pi/.ansible", "/root/.ansible", "/var/cache", "/var/lib/containerd")
# Left by every change of the list of users, whoever makes it.
USER_LISTS = {"/etc/.pwd.lock", "/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-"}


def files(hosts, name):
    """Every file of a host that it does not make by itself."""
    pruned = " -o ".join(f"-path {path}" for path in OTHERS)
    found = hosts.run(
        name, f"find / \\( {pruned} \\) -prune -o -print; ls -d /run/edgeorch* /tmp/edgeorch*; true"
    )
    return set(found.stdout.splitlines()) - USER_LISTS


def ours(hosts, name):
    """What a host still has of ours besides files: units, users, processes, rules."""
    asked = (
        "for what in list-units list-unit-files; do systemctl $what --all --no-legend 'edgeorch*'; done",
        "{ getent passwd edgeorch edgeorch-task; getent group edgeorch edgeorch-task; } | cut -d: -f1",
        "ps -eo pid,user,args | grep [e]dgeorch",
        "ufw show added | grep edgeorch",
    )
    return [line for command in asked for line in hosts.run(name, command, check=False).stdout.splitlines()]


@pytest.fixture(scope="module")
def bare(module_hosts):
    """Two hosts with a Docker Engine and the files that they have."""
    controller = module_hosts(2, docker=True)
    hosts = controller.hosts
    hosts.run("n1", "ufw allow 22/tcp && ufw --force enable")
    hosts.load_image("n1", busybox_image())
    controller.inventory = hosts.write_inventory(hosts.folder / "open.yml", edgeorch_docker="open")
    return controller, {name: files(hosts, name) for name in ("n1", "n2")}


def test_remove_keeps_users_and_data_and_purge_leaves_nothing(bare, programs):
    controller, before = bare
    hosts, node = controller.hosts, controller.node("n1")
    controller.take_over(programs)
    controller.play("deploy")
    node_id = node.get("/api/v1/nodes/self")["id"]
    done = node.ended(node.submit("true", placement={"node": "n1"}))
    assert done["state"] == "succeeded"
    start_services(node)
    others = hosts.run("n1", "docker run --detach --network none busybox:local sleep 1000").stdout.strip()
    assert any("edgeorch" in line for line in hosts.run("n1", "ufw show added").stdout.splitlines())

    looked = controller.play("remove", "--check", "--diff")
    assert looked.changed
    assert node.get(f"/api/v1/tasks/{done['id']}")["state"] == "succeeded"

    controller.play("remove")
    assert ours(hosts, "n1") == USERS
    assert hosts.run("n1", "docker ps --quiet --no-trunc").stdout.split() == [others]
    assert files(hosts, "n1") - before["n1"] == below(hosts, "n1", "/etc/edgeorch", "/var/lib/edgeorch")
    assert controller.play("remove").changed == 0

    controller.take_over(programs)
    controller.play("deploy")
    assert node.get("/api/v1/nodes/self")["id"] == node_id
    assert node.get(f"/api/v1/tasks/{done['id']}") == done

    start_services(node)
    controller.play("remove", "-e", "edgeorch_purge=true")
    for name in ("n1", "n2"):
        assert files(hosts, name) == before[name]
        assert ours(hosts, name) == []
    assert hosts.run("n1", "docker ps --quiet --no-trunc").stdout.split() == [others]
    assert "22/tcp" in hosts.run("n1", "ufw status").stdout
    assert controller.play("remove", "-e", "edgeorch_purge=true").changed == 0

    # The same machine comes back as a new node, and nobody has to say so.
    controller.take_over(programs)
    controller.play("deploy", "--limit", "n1")
    assert node.get("/api/v1/nodes/self")["id"] != node_id


USERS = ["edgeorch", "edgeorch-task"] * 2
"""And their groups."""


def start_services(node):
    """A native service and a container that run until they are ended."""
    native = {"driver": "native", "argv": ["sh", "-c", "setsid sleep 1000 & sleep 1000"]}
    container = {"driver": "container", "image": "busybox:local", "args": ["sleep", "1000"]}
    once = {"placement": {"node": "n1"}, "retry": {"max_attempts": 1}}
    for service in (native, container):
        spec = {"name": "long", "service": [service], **once}
        status, body = node.request("POST", "/api/v1/tasks", spec)
        assert status == 202, body
    eventually(lambda: node.get("/api/v1/nodes/self")["slots_used"] == 2, "both run")


def below(hosts, name, *folders):
    """Folders and everything in them."""
    return set(hosts.run(name, "find", *folders).stdout.splitlines())


def test_a_host_that_was_deployed_half_is_cleaned_too(bare):
    controller, before = bare
    hosts = controller.hosts
    hosts.run(
        "n2",
        "mkdir -p /opt/edgeorch/staged /opt/edgeorch/0.0.1-py311 /etc/edgeorch/pki "
        "/etc/systemd/system/edgeorch.service.d /etc/sysusers.d /var/lib/edgeorch && "
        "ln -s nowhere /opt/edgeorch/current && "
        "ln -s /opt/edgeorch/current/bin/edgeorch /usr/local/bin/edgeorch && "
        "touch /etc/sysusers.d/edgeorch.conf && useradd --system edgeorch-task && "
        "printf '[Service]\\nExecStart=/bin/sleep 1000\\n' >/etc/systemd/system/edgeorch.service && "
        "systemctl daemon-reload && systemctl start edgeorch",
    )
    hosts.run(
        "n2", "setsid setpriv --reuid edgeorch-task --clear-groups sleep 1000 </dev/null >/dev/null 2>&1 &"
    )
    eventually(
        lambda: "sleep" in hosts.run("n2", "ps -u edgeorch-task -o comm=", check=False).stdout, "a leftover"
    )
    controller.play("remove", "--limit", "n2", "-e", "edgeorch_purge=true")
    assert files(hosts, "n2") == before["n2"]
    assert ours(hosts, "n2") == []
    assert controller.play("remove", "--limit", "n2", "-e", "edgeorch_purge=true").changed == 0
