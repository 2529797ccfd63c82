"""The runner's unit: what its services can still do, what they cannot, and that each line says why."""

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "systemd/edgeorch-runner.service"
EXPOSURE = 4.6
"""Not as low as the node's: the rest is networks, devices and files that services are there to use."""


def settings():
    text = UNIT.read_text().replace("\\\n", " ")
    return dict(line.split("=", 1) for line in text.splitlines() if line[:1].isalpha())


def not_set():
    listed = UNIT.read_text().split("# Not set,")[1].split("\n\n")[0]
    return set(re.findall(r"(\w+)=", listed))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze: apt-get install systemd")
def test_the_exposure_of_the_runner(capsys):
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    figure = float(re.search(r"Overall exposure level .*: ([\d.]+)", said)[1])
    with capsys.disabled():
        print(f"\nexposure of {UNIT.name}: {figure}; what it leaves open, and why, is listed in it")
    assert figure <= EXPOSURE


def test_what_services_would_miss_is_not_set():
    assert {"MemoryDenyWriteExecute", "PrivateTmp", "ProtectKernelTunables", "RestrictSUIDSGID"} <= not_set()
    assert not not_set() & settings().keys()


def test_each_restriction_says_why():
    body = UNIT.read_text().split("# Every service inherits")[1].split("# Not set,")[0]
    lines = body.splitlines()
    for above, line in itertools.pairwise(lines):
        if line[:1].isalpha() and not above.startswith("#"):
            # A second setting under one reason.
            assert line.split("=")[0] in {"AmbientCapabilities", "KeyringMode", "SystemCallErrorNumber"}


def test_services_get_no_privileges_and_yet_ping_starts():
    said = settings()
    assert (said["NoNewPrivileges"], said["AmbientCapabilities"]) == ("yes", "")
    assert "CAP_NET_RAW" in said["CapabilityBoundingSet"].split()
    assert not re.search("CAP_(SYS_ADMIN|SYS_PTRACE|KILL|DAC|SETUID)", said["CapabilityBoundingSet"])


def test_devices_come_by_a_drop_in():
    assert settings()["DevicePolicy"] == "closed"
    assert "DeviceAllow" not in settings()


def test_landlock_closes_the_folders_of_node_and_runner():
    command = settings()["ExecStart"]
    closed = re.findall(r"--close (\S+)", command)
    for option in ("work-dir", "socket"):
        path = Path(re.search(rf"--{option} (\S+)", command)[1])
        assert any(path.is_relative_to(folder) for folder in closed)
