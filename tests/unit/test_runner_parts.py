"""Environment, lookup, records and cgroup files: what needs no running service."""

import _thread
import ctypes
import errno
import os
import resource
import select
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

from edgeorch.runner import landlock, spawn
from edgeorch.runner.limits import Limits
from edgeorch.runner.processes import Processes
from edgeorch.runner.protocol import Ended
from edgeorch.runner.records import Records


def test_the_environment_takes_nothing_from_the_runner_but_a_few_plain_variables():
    own = {"PATH": "/p", "TZ": "UTC", "SECRET": "x", "HOME": "/root", "EDGEORCH_WORK": "/elsewhere"}
    asked = {"Q": "1", "HOME": "/asked", "EDGEORCH_WORK": "/forged"}
    env = spawn.environment(spawn.plain(own), asked, "/work")
    assert env.pop("USER") == env.pop("LOGNAME")
    assert env == {"PATH": "/p", "TZ": "UTC", "HOME": "/asked", "Q": "1", "EDGEORCH_WORK": "/work"}
    assert spawn.environment(spawn.plain({}), {}, "/work")["HOME"] == "/work"
    assert spawn.plain({})["PATH"] == spawn.DEFAULT_PATH


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
            spawn.spawn(["no-such-program"], {}, [str(tmp_path)], (0, 1, 2), open_files=100)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before[0])
        os.chdir(before[1])


def test_records_tell_ended_from_lost_from_foreign(tmp_path):
    records = Records(tmp_path)
    for key in ("ended.1", "lost.1", "old.1", "torn.1"):
        records.create(records.folder(key))
    records.close("ended.1", Ended(exit_code=3, cause="failed"))
    records.write()
    # As earlier releases kept it.
    (tmp_path / "old.1/exit").write_bytes(msgspec.msgpack.encode(Ended(exit_code=4)))
    (tmp_path / "torn.1/exit").write_bytes(b"\x93")
    (tmp_path / "container.1").mkdir()
    (tmp_path / "file").touch()
    records = Records(tmp_path)
    found = dict(records.recover())
    assert found.keys() == {"ended.1", "lost.1", "old.1", "torn.1"}
    assert found["ended.1"] == Ended(exit_code=3, cause="failed")
    assert found["lost.1"].cause == found["torn.1"].cause == "node_lost"
    assert found["old.1"] == Ended(exit_code=4)
    assert records.clear("lost.1") == ""
    assert list((tmp_path / "lost.1").iterdir()) == []
    (tmp_path / "ended.1/work/kept").touch()
    assert records.clear("ended.1") == str(tmp_path / "ended.1/work")
    records.forget("lost.1")
    records.write()
    assert Records(tmp_path).recover() == {key: found[key] for key in ("ended.1", "old.1", "torn.1")}


def test_a_key_that_comes_again_finds_no_output_of_its_first_time(tmp_path):
    records = Records(tmp_path)
    folder = records.folder("a.1")
    records.create(folder)
    for name in ("stdout", "stdout.tail", "stderr"):
        (tmp_path / "a.1" / name).touch()
    records.clear("a.1")
    records.create(folder)
    assert [path.name for path in (tmp_path / "a.1").iterdir()] == ["work"]


@pytest.mark.root
def test_a_folder_that_the_runner_may_not_enter_is_not_its_own():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "container.1/work").mkdir(parents=True)
        (Path(folder) / "container.1").chmod(0o700)
        os.seteuid(NOBODY)
        try:
            assert dict(Records(Path(folder)).recover()) == {}
        finally:
            os.seteuid(0)


NOBODY = 65534


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
    limits = Limits(delegated)
    assert limits.kept == ("cgroup:memory", "cgroup:cpus")
    assert (delegated / "cgroup.subtree_control").read_text() == "+memory +cpu"
    with limits.entered("a.1", 0.5, 1 << 20) as group:
        assert (group.path / "cgroup.procs").read_text() == str(os.getpid())
        # A small limit would throttle the runner, or kill it, as long as it is in there itself.
        assert not (group.path / "memory.max").exists()
    assert (delegated / "runner/cgroup.procs").read_text() == str(os.getpid())
    limits.apply(os.getpid(), group, 0.5, 1 << 20)
    assert (group.path / "memory.max").read_text() == str(1 << 20)
    assert (group.path / "memory.oom.group").read_text() == "1"
    assert (group.path / "cpu.max").read_text() == "50000 100000"
    assert not group.out_of_memory
    (group.path / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    assert group.out_of_memory
    with limits.entered("b.1", 0, 0) as group:
        assert group is None


def test_the_runner_leaves_the_group_of_a_service_that_did_not_start(delegated):
    limits = Limits(delegated)
    with pytest.raises(ZeroDivisionError), limits.entered("a.1", 0, 1):
        raise ZeroDivisionError
    assert (delegated / "runner/cgroup.procs").read_text() == str(os.getpid())


def test_without_cgroups_memory_is_limited_by_process(tmp_path):
    assert Limits(None).kept == Limits(tmp_path / "missing").kept == ("rlimit:memory",)
    (tmp_path / "cgroup.controllers").write_text("pids cpu\n")
    limits = Limits(tmp_path)
    assert limits.kept == ("cgroup:cpus", "rlimit:memory")
    process = subprocess.Popen(["sleep", "1000"])
    try:
        limits.apply(process.pid, None, 0, 1 << 20)
        assert resource.prlimit(process.pid, resource.RLIMIT_DATA) == (1 << 20, 1 << 20)
    finally:
        process.kill()
        process.wait()
    limits.apply(process.pid, None, 0, 1 << 20)  # one that has ended meanwhile is no error


def test_a_service_has_its_limit_from_its_beginning():
    own = resource.getrlimit(resource.RLIMIT_DATA)
    ask = [sys.executable, "-c", "import resource; print(resource.getrlimit(resource.RLIMIT_DATA)[0])"]
    # Below the small one, nobody could start anything.
    for memory, expected in ((8 << 30, 8 << 30), (1 << 20, own[0])):
        with Limits(None).entered("a.1", 0, memory) as group:
            said = subprocess.run(ask, capture_output=True, check=True).stdout
        assert (group, int(said)) == (None, expected)
        assert resource.getrlimit(resource.RLIMIT_DATA) == own


def test_a_group_that_others_use_is_left_alone(delegated):
    (delegated / "cgroup.subtree_control").mkdir()  # cannot be written, as EBUSY would say
    limits = Limits(delegated)
    assert limits.kept == ("rlimit:memory",)
    assert (delegated / "cgroup.procs").read_text() == str(os.getpid())
    with limits.entered("a.1", 1, 1) as group:
        assert group is None


def test_a_runner_of_root_steps_into_a_group_that_bounds_processes(tmp_path):
    """Of cgroup v2, as plain files; ``node/test_bad_services.py`` does it with the kernel's."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    left = tmp_path / "edgeorch-runner-1234567890"
    (left / "runner").mkdir(parents=True)
    made = Processes(77, root=True, group=(tmp_path, tmp_path))
    assert made.kept == ("cgroup:processes",)
    own = tmp_path / f"edgeorch-runner-{os.getpid()}"
    assert (own / "pids.max").read_text() == "77"
    assert (own / "cgroup.procs").read_text() == str(os.getpid())
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+pids +memory +cpu"
    assert not left.exists()
    made.leave()
    assert (tmp_path / "cgroup.procs").read_text() == str(os.getpid())


def test_the_group_of_another_runner_that_starts_or_ends_meanwhile_is_let_alone(tmp_path, monkeypatch):
    """A service's group is empty for a moment before its first process is in it."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    starting = tmp_path / f"edgeorch-runner-{os.getppid()}" / "service"
    starting.mkdir(parents=True)
    gone = [tmp_path / "edgeorch-runner-1234567890", tmp_path / "edgeorch-runner-odd"]
    found = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [*found(self, pattern), *gone])
    assert Processes(77, root=True, group=(tmp_path, tmp_path)).kept == ("cgroup:processes",)
    assert starting.exists()


def test_a_bound_of_the_system_is_enough(tmp_path):
    (tmp_path / "unit/leaf").mkdir(parents=True)
    (tmp_path / "unit/pids.max").write_text("4096\n")
    (tmp_path / "unit/leaf/pids.max").write_text("max\n")
    assert Processes(77, root=True, group=(tmp_path, tmp_path / "unit/leaf")).kept == ("cgroup:processes",)
    assert [each.name for each in (tmp_path / "unit/leaf").iterdir()] == ["pids.max"]


def test_a_group_that_takes_nothing_bounds_nothing(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("pids\n")
    (tmp_path / "cgroup.subtree_control").mkdir()  # cannot be written, as EBUSY would say
    assert Processes(77, root=True, group=(tmp_path, tmp_path)).kept == ()
    assert (tmp_path / "cgroup.procs").read_text() == str(os.getpid())


@pytest.mark.parametrize(
    ("answer", "number", "words"),
    [(-1, errno.ENOSYS, "Function not implemented"), (1, 0, "too old (version 1")],
)
def test_a_kernel_without_landlock_is_told_from_one_with_it(tmp_path, monkeypatch, answer, number, words):
    def syscall(*_arguments):
        ctypes.set_errno(number)
        return answer

    monkeypatch.setattr(landlock, "_syscall", syscall)
    assert words in landlock.Landlock([tmp_path]).missing


needs_landlock = pytest.mark.skipif(
    bool(landlock.Landlock([Path("/tmp")]).missing), reason=landlock.Landlock([Path("/tmp")]).missing or "-"
)


@needs_landlock
def test_what_happens_in_the_confined_thread_comes_back(tmp_path):
    def fail():
        raise PermissionError(errno.EACCES, "no")

    made = landlock.Landlock([tmp_path])
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "other").write_text("x")
    assert made.within([work], lambda: 5) == 5
    with pytest.raises(PermissionError):
        made.within([work], fail)
    with pytest.raises(PermissionError):
        made.within([work], lambda: len((tmp_path / "other").read_text()))
    # This thread is as free as before.
    assert (tmp_path / "other").read_text() == "x"


@needs_landlock
def test_what_was_made_for_a_folder_serves_it_again_and_no_other(tmp_path, monkeypatch):
    made, built = landlock.Landlock([tmp_path]), []
    # Others make files beside the closed folder all the time here, and mount, after which nothing made before
    # is good.
    monkeypatch.setattr(made, "_refresh", lambda: None)
    monkeypatch.setattr(made, "_mounted", select.poll())
    make = made._make
    monkeypatch.setattr(made, "_make", lambda paths: built.append(paths[-1]) or make(paths))
    works = [tmp_path / str(number) for number in range(landlock._MADE + 1)]
    for work in works:
        work.mkdir()
        (work / "file").write_text("x")
    first, second = works[:2]
    for mine, other in ((first, second), (second, first), (first, second)):
        assert made.within([mine], (mine / "file").read_text) == "x"
        with pytest.raises(PermissionError):
            made.within([mine], (other / "file").read_text)
    assert built == [first, second]
    moved = first.rename(tmp_path / "moved")
    first.mkdir()
    with pytest.raises(PermissionError):
        made.within([first], (moved / "file").read_text)
    assert made.within([moved], (moved / "file").read_text) == "x"
    assert built == [first, second, first]
    for work in works:
        made.within([work], lambda: 0)
    assert len(made._made) == landlock._MADE


@needs_landlock
@pytest.mark.root
def test_what_is_mounted_anew_can_be_reached(tmp_path):
    closed, place = tmp_path / "closed", tmp_path / "place"
    closed.mkdir()
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "none", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this root may not mount")
    try:
        made = landlock.Landlock([closed])
        for _ in range(2):
            (place / "file").write_text("x")
            assert made.within([closed], (place / "file").read_text) == "x"
            subprocess.run(["umount", str(place)], check=True)
            subprocess.run(mount, check=True)
    finally:
        subprocess.run(["umount", str(place)], check=True)


@needs_landlock
def test_no_thread_to_be_had_is_a_limit_of_the_system(tmp_path, monkeypatch):
    made = landlock.Landlock([tmp_path])

    def rulesets():
        # Not all descriptors: it looks again at what lies beside the folder, where others are at work.
        links = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        return sum("landlock-ruleset" in str(link) for link in links)

    open_before = rulesets()

    def start(_function, _arguments):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", start)
    with pytest.raises(OSError, match="temporarily") as caught:
        made.within([tmp_path], lambda: 5)
    assert caught.value.errno == errno.EAGAIN
    assert rulesets() == open_before
