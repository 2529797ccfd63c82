"""What ``edgeorch_docker`` opens and refuses, on nodes with a Docker Engine of their own."""

import json

import pytest
from docker_images import busybox_image

CONF = "/etc/systemd/system/edgeorch.service.d/docker.conf"
# The request of the original's README, field for field.
README = {
    "ServiceName": "hello-world",
    "ServiceInfo": [
        {
            "ExecutionType": "container",
            "ExecCmd": ["docker", "run", "-v", "/var/run:/var/run:rw", "hello-world"],
        }
    ],
    "StatusCallbackURI": "http://192.168.1.5:8888/api/v1/services/notification",
}
IMAGE = 'FROM busybox:local\nCMD ["/bin/echo", "Hello from Docker!"]\n'


@pytest.fixture
def docker_mode(fleet):
    """Set edgeorch_docker on n1 and n2: ``docker_mode("open", edgeorch_docker_binds=…)``; off at the end."""
    modes = []

    def run(mode, **variables):
        modes.append(mode)
        given = json.dumps({"edgeorch_docker": mode, **variables})
        fleet.play("deploy", "--limit", "n1,n2", "--tags", "config,service,health", "-e", given)

    yield run
    if modes[-1:] != ["off"]:
        run("off")
    for node in map(fleet.node, ("n1", "n2")):
        for task in node.get("/api/v1/tasks?local=true&limit=1000")["tasks"]:
            if not task["ended_at"]:
                node.request("DELETE", f"/api/v1/tasks/{task['id']}")


def asked(node, on, body):
    """POST the README's request by curl from another host; return the answer."""
    path = "/api/v1/orchestration/services"
    header = ("-H", "Content-Type: application/json")
    done = node.curl(on, path, "-X", "POST", *header, "-d", json.dumps(body))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refusal(node, *options, image="busybox:local"):
    """Why a node refuses a container with these docker run options; empty where it takes it."""
    service = {"driver": "container", "image": image, "options": list(options), "args": ["true"]}
    status, body = node.request("POST", "/api/v1/tasks", {"name": "x", "service": [service]})
    problem = json.loads(body)
    assert status in {202, 403}, problem
    return problem["detail"] if status == 403 else ""


def test_open_runs_the_readme_and_guarded_names_what_it_refuses(fleet, docker_mode):
    hosts, n1, n2 = fleet.hosts, fleet.node("n1"), fleet.node("n2")
    for name in ("n1", "n2"):
        hosts.load_image(name, busybox_image())
        hosts.run(name, "docker build -q -t hello-world -", stdin=IMAGE)
        hosts.run(name, "mkdir -p /srv/data")
    docker_mode(
        # n1 is open to all, n2 guards.
        "{{ 'open' if inventory_hostname == 'n1' else 'guarded' }}",
        edgeorch_docker_binds=["/srv/data"],
        edgeorch_docker_images=["busybox", "hello-world"],
        edgeorch_docker_devices=["/dev/zero"],
        edgeorch_docker_capabilities=["SYS_TIME"],
        edgeorch_docker_namespaces=["uts"],
    )
    assert "docker" in groups(hosts, "n2")

    answer = asked(n1, "n2", README)
    assert answer["Message"] == "ERROR_NONE", answer
    assert answer["RemoteTargetInfo"] == {"ExecutionType": "container", "Target": n1.address}
    task = n1.ended({"id": answer["TaskId"]})
    # n2 may have been asked first, and have refused.
    assert (task["state"], task["attempts"][-1]["node_name"]) == ("succeeded", "n1")
    assert n1.request("GET", f"/api/v1/tasks/{task['id']}/output")[1] == b"Hello from Docker!\n"

    answer = asked(n2, "n1", README)
    assert answer["Message"] == "NOT_ALLOWED_COMMAND"
    assert answer["Detail"].startswith(
        "policy.privileged is off, and the container asks for /var/run, through which it reaches the Docker"
    )
    for options, said in {
        ("--privileged",): "--privileged",
        ("--network", "host"): "--network host",
        ("--pid", "host"): "--pid host",
        ("--cap-add", "NET_ADMIN"): "the capability NET_ADMIN",
        ("--device", "/dev/null"): "the device /dev/null",
        ("-v", "/etc:/host:ro"): "policy.host_paths does not list /etc",
        ("-v", "/srv/data/../../run:/x"): "the Docker socket",
        ("--mount", "type=bind,source=/,target=/x"): "the Docker socket",
        ("-v", "others:/x"): "policy.volumes does not list the volume others",
        ("--env-file", "/etc/shadow"): "policy.option_files is off",
    }.items():
        assert said in refusal(n2, *options)
        assert refusal(n1, *options) == "" or options[0] == "--env-file"
    listed = ("--device", "/dev/zero", "--cap-add", "SYS_TIME", "--uts", "host", "-v", "/srv/data:/data")
    assert refusal(n2, *listed) == ""
    assert refusal(n2, image="alpine") == "policy.images does not list alpine"
    assert refusal(n1, image="alpine") == ""

    # Off again: the drop-in and the driver go.
    docker_mode("off")
    for name in ("n1", "n2"):
        assert hosts.run(name, f"test -e {CONF}", check=False).returncode == 1
        assert list(fleet.node(name).get("/api/v1/nodes/self")["drivers"]) == ["native"]
        assert "docker" not in groups(hosts, name)


def groups(hosts, name):
    """The groups of the node's process."""
    pid = hosts.run(name, "systemctl show --property MainPID --value edgeorch").stdout.strip()
    return hosts.run(name, f"id -nG $(id -nu edgeorch); grep Groups /proc/{pid}/status | cut -f2 | "
                           "xargs -r -d' ' -n1 getent group | cut -d: -f1").stdout.split()  # fmt: skip
