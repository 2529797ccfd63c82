"""``lost-controller.md`` followed to the letter, and the example of a timer."""

import re
import shlex
import shutil
import subprocess

import pytest
from controller import PLAYBOOKS
from steady_load import SteadyLoad

NAMES = ("n1", "n2", "n3", "n4")
PAGE = (PLAYBOOKS / "lost-controller.md").read_text()


def follow(fleet, heading):
    """Run each command below a heading of the page; only the places of the files are this test's."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", section, re.DOTALL | re.MULTILINE)
    assert blocks
    for line in "".join(blocks).splitlines():
        program, *arguments = shlex.split(line)
        assert (program, *arguments[:2]) == ("ansible-playbook", "-i", "hosts.yml")
        playbook, *rest = arguments[2:]
        fleet.play(playbook.removeprefix("playbooks/").removesuffix(".yml"), *rest)


def trusted(fleet):
    """What each node and the controller trust."""
    on_nodes = {fleet.hosts.run(name, "cat", "/etc/edgeorch/pki/ca.pem").stdout for name in NAMES}
    return on_nodes | {(fleet.state / "ca.pem").read_text()}


def test_without_a_backup_the_fleet_goes_over_to_a_new_ca(fleet):
    fleet.play("tokens", "-e", "edgeorch_token=keep")
    token, old_token, (old,) = (fleet.state / "keep.token").read_text().strip(), fleet.token(), trusted(fleet)
    shutil.rmtree(fleet.state)
    follow(fleet, "Without a backup")
    (new,) = trusted(fleet)
    assert new != old
    assert set(fleet.node("n1").sees().values()) == {"alive"}
    answers = [fleet.node("n2").request("GET", "/api/v1/nodes", token=one)[0] for one in (token, old_token)]
    assert answers == [200, 401]
    assert fleet.play("deploy", "--tags", "keys").changed == 0
    settings = fleet.home / ".config" / "edgeorch" / "config.toml"
    settings.write_text(settings.read_text().replace(old_token, fleet.token()))


def test_with_an_old_backup_nothing_is_lost(fleet, tmp_path):
    backup = tmp_path / "backup"
    shutil.copytree(fleet.state, backup)
    fleet.play("rotate-keys")
    revoked = fleet.hosts.run("n1", "cat", "/etc/edgeorch/pki/crl.pem").stdout
    shutil.rmtree(fleet.state)
    shutil.copytree(backup, fleet.state)
    follow(fleet, "With a backup of `.edgeorch`")
    assert fleet.hosts.run("n1", "cat", "/etc/edgeorch/pki/crl.pem").stdout == revoked
    assert set(fleet.node("n1").sees().values()) == {"alive"}
    with SteadyLoad(fleet, NAMES) as load:
        fleet.play("rotate-keys")
    assert load.failures == []


@pytest.mark.parametrize("unit", ["edgeorch-renew.service", "edgeorch-renew.timer"])
def test_the_example_of_a_timer_is_valid(unit, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    for name in ("edgeorch-renew.service", "edgeorch-renew.timer"):
        # systemd looks the program up where this machine may not have it.
        text = (PLAYBOOKS / "examples" / name).read_text().replace("=ansible-playbook", "=/bin/true")
        (tmp_path / name).write_text(text)
    argv = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)]
    checked = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
