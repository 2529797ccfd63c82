"""The units in systemd/: read by systemd itself where it is installed, and for what must not get lost."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeorch import node
from edgeorch.config import Config, Lease

FOLDER = Path(__file__).parents[2] / "systemd"
NODE, RUNNER = FOLDER / "edgeorch.service", FOLDER / "edgeorch-runner.service"
PYTHON = "/opt/edgeorch/current/bin/python"
EXPOSURE = 1.5

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="no systemd-analyze: apt-get install systemd"
)


def read(path):
    """Section to key to its values, in their order."""
    found, section = {}, ""
    for line in path.read_text().replace("\\\n", " ").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and line[0] not in "#;":
            key, _, value = line.partition("=")
            found.setdefault(section, {}).setdefault(key, []).append(value)
    return found


def service(path):
    return {key: values[-1] for key, values in read(path)["Service"].items()}


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|min)", text).groups()
    return int(number) * (60 if unit == "min" else 1)


def analyze(*arguments):
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def installed(tmp_path):
    """Copies whose program exists here: to verify means to look for it too."""
    for path in FOLDER.glob("*.service"):
        (tmp_path / path.name).write_text(path.read_text().replace(PYTHON, sys.executable))
    drop_ins = tmp_path / "edgeorch.service.d"
    drop_ins.mkdir()
    shutil.copy(FOLDER / "docker.conf", drop_ins)
    return tmp_path


@needs_systemd
@pytest.mark.parametrize("name", [NODE.name, RUNNER.name])
def test_systemd_understands_every_line(installed, name):
    done = analyze("verify", "--man=no", str(installed / name))
    # An unknown key is a warning, not a failure.
    assert (done.stderr, done.returncode) == ("", 0)


@needs_systemd
@pytest.mark.parametrize("name", [NODE.name, "edgeorch.service.d/docker.conf"])
def test_systemd_tells_of_a_misspelt_key(installed, name):
    with (installed / name).open("a") as unit:
        unit.write("\n[Service]\nProtectSytem=strict\n")
    assert "ProtectSytem" in analyze("verify", "--man=no", str(installed / NODE.name)).stderr


@needs_systemd
def test_the_node_is_hardly_exposed():
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE * 10:.0f}", str(NODE))
    assert done.returncode == 0, done.stdout


@needs_systemd
def test_less_hardening_is_noticed(installed):
    unit = installed / NODE.name
    unit.write_text(
        unit.read_text().replace("NoNewPrivileges=yes\n", "").replace("ProtectSystem=strict\n", "")
    )
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE * 10:.0f}", str(unit))
    assert done.returncode != 0


def test_systemd_learns_how_the_node_is_and_brings_it_back():
    said = service(NODE)
    assert said["Type"] == "notify"
    assert seconds(said["WatchdogSec"]) == 60
    assert said["Restart"] == "always"
    assert read(NODE)["Unit"]["StartLimitIntervalSec"] == ["0"]
    assert said["ExecReload"] == "/bin/kill -HUP $MAINPID"


@pytest.mark.parametrize("path", [NODE, RUNNER])
def test_a_configuration_that_cannot_be_used_is_not_tried_again(path):
    assert service(path)["RestartPreventExitStatus"] == "78"


def test_the_node_ends_by_itself_before_systemd_ends_it():
    said = service(NODE)
    assert said["KillMode"] == "mixed"
    assert seconds(said["TimeoutStopSec"]) > node.STOP_S


def test_a_crashed_node_is_back_before_its_leases_end():
    start_s = 1
    assert Lease().renew_s + seconds(service(NODE)["RestartSec"]) + start_s < Lease().lease_s


def test_the_node_finds_the_runner():
    said, command = service(NODE), service(RUNNER)["ExecStart"]
    socket = re.search(r"--socket (\S+)", command)[1]
    assert said["Environment"] == f"EDGEORCH_RUNNER_SOCKET={socket}"
    assert Path(socket).parent == Path("/run", service(RUNNER)["RuntimeDirectory"])
    assert re.search(r"--allow (\S+)", command)[1] == said["User"]
    for key in ("Wants", "After"):
        assert RUNNER.name in read(NODE)["Unit"][key][0].split()
    # It may fail, start again or be upgraded without the node.
    assert not {"Requires", "BindsTo", "PartOf"} & read(NODE)["Unit"].keys()


def test_users_and_folders_are_those_that_are_made():
    said, default = service(NODE), Config().node
    users = [
        line.split()[1] for line in (FOLDER / "edgeorch.sysusers").read_text().splitlines() if line[0] == "u"
    ]
    assert users == [said["User"], service(RUNNER)["User"]]
    folders = [
        line.split() for line in (FOLDER / "edgeorch.tmpfiles").read_text().splitlines() if line[0] == "d"
    ]
    state, tasks = ({"path": path, "mode": mode, "owner": owner} for _, path, mode, owner, *_ in folders)
    assert state == {"path": default.state_dir, "mode": said["StateDirectoryMode"], "owner": said["User"]}
    assert state["path"] == f"/var/lib/{said['StateDirectory']}"
    assert f"--work-dir {tasks['path']} " in service(RUNNER)["ExecStart"]
    assert default.run_dir == f"/run/{said['RuntimeDirectory']}"
    # A restart must not take the secrets from containers that go on.
    assert said["RuntimeDirectoryPreserve"] == "yes"
    assert "EDGEORCH_NODE_STATE_DIR" not in said["Environment"]


def test_the_node_may_do_what_it_must_and_no_more():
    said = service(NODE)
    assert said["ProtectSystem"] == "strict"
    assert said["ReadOnlyPaths"] == "-/etc/edgeorch"
    assert "ReadWritePaths" not in said
    # Interfaces come over netlink, load and memory from files of /proc that a subset hides.
    assert said["RestrictAddressFamilies"].split() == ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"]
    assert said["ProcSubset"] == "all"
    assert said["CapabilityBoundingSet"] == said["AmbientCapabilities"] == ""
    assert said["NoNewPrivileges"] == "yes"
    assert int(said["LimitNOFILE"]) > 4 * Config().api.max_connections
    assert int(said["OOMScoreAdjust"]) < 0
    assert int(said["TasksMax"])
    assert said["LimitCORE"] == "0"


def test_the_node_sees_no_devices():
    assert {"PrivateDevices", "DevicePolicy", "PrivateUsers"} <= service(NODE).keys()


def test_the_docker_group_comes_only_with_its_warning():
    path = FOLDER / "docker.conf"
    assert service(path)["SupplementaryGroups"] == "docker"
    assert "WARNING: the group docker is root" in path.read_text()
    assert "docker" not in "".join(service(NODE).values()) + (FOLDER / "edgeorch.sysusers").read_text()
    # Links below policy.host_paths must lead where they lead the Engine.
    assert service(path)["ProtectHome"] == "read-only"
    assert service(path)["PrivateTmp"] == "no"
