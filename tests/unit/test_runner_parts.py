"""Environment, lookup, records and cgroup files: what needs no running service."""

import os
from pathlib import Path

import msgspec
import pytest

from edgeorch.runner import spawn
from edgeorch.runner.cgroup import Cgroups
from edgeorch.runner.protocol import Ended
from edgeorch.runner.records import Records


def test_the_environment_takes_nothing_from_the_runner_but_a_few_plain_variables(tmp_path):
    own = {"PATH": "/p", "TZ": "UTC", "SECRET": "x", "HOME": "/root", "EDGEORCH_WORK": "/elsewhere"}
    env = spawn.environment(own, {"Q": "1", "HOME": "/asked", "EDGEORCH_WORK": "/forged"}, tmp_path)
    assert env.pop("USER") == env.pop("LOGNAME")
    assert env == {"PATH": "/p", "TZ": "UTC", "HOME": "/asked", "Q": "1", "EDGEORCH_WORK": str(tmp_path)}
    assert spawn.environment({}, {}, tmp_path)["PATH"] == spawn.DEFAULT_PATH


def program(folder, mode=0o755):
    folder.mkdir(exist_ok=True)
    path = folder / "prog"
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return str(path)


def test_find_takes_the_first_executable_on_the_path(tmp_path):
    program(tmp_path / "a", 0o644)
    (tmp_path / "b/prog").mkdir(parents=True)
    good = program(tmp_path / "c")
    path = ":".join(["", str(tmp_path / "none"), *(str(tmp_path / name) for name in "abc")])
    assert spawn.find("prog", path) == good
    assert spawn.find(good, "") == good


@pytest.mark.parametrize(
    ("name", "reason"),
    [("prog", "no_permission"), ("other", "no_program"), ("./other", "no_program"), ("", "invalid_service")],
)
def test_find_says_why_not(tmp_path, name, reason):
    program(tmp_path / "a", 0o644)
    with pytest.raises(spawn.SpawnError) as caught:
        spawn.find(name, str(tmp_path / "a"))
    assert caught.value.reason == reason


def test_a_very_long_name_is_shortened_in_the_message():
    with pytest.raises(spawn.SpawnError) as caught:
        spawn.find("x" * 100_000, "/bin")
    assert len(caught.value.detail) < 500


def test_a_failed_spawn_leaves_the_runner_as_it_was(tmp_path):
    before = os.umask(0o077), Path.cwd()
    try:
        with pytest.raises(spawn.SpawnError):
            spawn.spawn(["no-such-program"], {}, tmp_path, (0, 1, 2), 100)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before[0])
        os.chdir(before[1])


def test_records_tell_ended_from_lost_from_foreign(tmp_path):
    records = Records(tmp_path)
    for key in ("ended.1", "lost.1", "torn.1"):
        records.create(key)
    records.close("ended.1", Ended(exit_code=3, cause="failed"))
    (tmp_path / "torn.1/exit").write_bytes(b"\x93")
    (tmp_path / "container.1").mkdir()
    (tmp_path / "file").touch()
    found = dict(Records(tmp_path).recover())
    assert found.keys() == {"ended.1", "lost.1", "torn.1"}
    assert found["ended.1"] == Ended(exit_code=3, cause="failed")
    assert found["lost.1"].cause == found["torn.1"].cause == "node_lost"
    assert msgspec.msgpack.decode((tmp_path / "lost.1/exit").read_bytes(), type=Ended) == found["lost.1"]
    assert records.forget("lost.1") == []
    assert list((tmp_path / "lost.1").iterdir()) == []


def test_a_shared_work_folder_gives_its_group_access(tmp_path):
    assert Records(tmp_path).umask == 0o077
    tmp_path.chmod(0o2770)
    assert Records(tmp_path).umask == 0o007


@pytest.fixture
def delegated(tmp_path):
    """The files of a delegated cgroup v2 folder, as plain files."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    return tmp_path


def test_limits_are_set_where_they_can_be(delegated):
    cgroups = Cgroups(delegated)
    assert cgroups.limits == ("memory", "cpus")
    assert (delegated / "cgroup.subtree_control").read_text() == "+memory +cpu"
    with cgroups.entered("a.1", 0.5, 1 << 20) as group:
        assert (group.path / "memory.max").read_text() == str(1 << 20)
        assert (group.path / "cpu.max").read_text() == "50000 100000"
        assert (group.path / "cgroup.procs").read_text() == str(os.getpid())
    assert (delegated / "runner/cgroup.procs").read_text() == str(os.getpid())
    assert not group.out_of_memory
    (group.path / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    assert group.out_of_memory
    with cgroups.entered("b.1", 0, 0) as group:
        assert group is None


def test_nothing_is_promised_where_nothing_is_delegated(tmp_path):
    assert Cgroups(None).limits == ()
    assert Cgroups(tmp_path / "missing").limits == ()
    (tmp_path / "cgroup.controllers").write_text("pids\n")
    assert Cgroups(tmp_path).limits == ()


def test_a_group_that_others_use_is_left_alone(delegated):
    (delegated / "cgroup.subtree_control").mkdir()  # cannot be written, as EBUSY would say
    cgroups = Cgroups(delegated)
    assert cgroups.limits == ()
    assert (delegated / "cgroup.procs").read_text() == str(os.getpid())
    with cgroups.entered("a.1", 1, 1) as group:
        assert group is None
