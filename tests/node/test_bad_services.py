"""Services that harm the machine they run on: each is ended whole, with a reason, and the node goes on."""

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import trio
from real_fleet import RealFleet
from real_runner import Runner

from edgeorch.executor.driver import Launch
from edgeorch.executor.native import NativeDriver
from edgeorch.model import NativeService
from edgeorch.runner import processes

USER = 61_234
"""Nobody else's: the kernel counts processes by user."""
PROCESSES = 40
DROPPED = f"""
import ctypes, os, sys
import edgeorch.runner.__main__ as runner
runner._parser()  # loads what is loaded late: the other user may not read this interpreter
os.setgroups([]); os.setgid({USER}); os.setuid({USER})
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is its own again, as after an exec
sys.exit(runner.main(sys.argv[1:]))
"""
BOMB = """
trap '' TERM
bomb() { while :; do bomb & sleep 1; done; }
echo lit
bomb
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    fleet = RealFleet(tmp_path_factory.mktemp("bad"), "one")
    try:
        yield fleet.nodes["one"].start()
    finally:
        fleet.close()


def processes_of(user):
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == user and (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def printed(file):
    """An output so far; its file comes with the first byte."""
    return Path(file).read_bytes() if Path(file).exists() else b""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user: sudo make test")
async def test_a_fork_bomb_is_bounded_and_ended_whole(nursery):
    folder = Path(tempfile.mkdtemp())
    (folder / "tasks").mkdir()
    for path in (folder, folder / "tasks"):
        os.chown(path, USER, USER)
    (folder / "tasks").chmod(0o2770)
    runner = Runner(folder, "--max-processes", str(PROCESSES), program=["-c", DROPPED])
    try:
        driver = NativeDriver(socket=runner.path, work_dir=folder, run_dir=folder)
        await nursery.start(driver.run)
        service = NativeService(argv=("sh", "-c", BOMB))
        bomb = await driver.start(Launch(key="bomb.1", name="x", service=service, env={}, output_max=1000))
        most = 0
        # A shell that may not fork ends, and the others go on: wait until it has met the limit, and look on.
        with trio.fail_after(60):
            while b"fork" not in printed(bomb.stderr):
                most = max(most, len(processes_of(USER)))
                await trio.sleep(0.02)
        assert most <= PROCESSES + 1
        with trio.fail_after(60):
            await driver.stop(bomb, 0.2)
            end = await driver.wait(bomb)
        assert end.cause == "failed"
        assert processes_of(USER) == [runner.process.pid]
        after = NativeService(argv=("echo", "still", "here"))
        handle = await driver.start(Launch(key="after.1", name="x", service=after, env={}, output_max=1000))
        assert (await driver.wait(handle)).exit_code == 0
    finally:
        runner.end()
        shutil.rmtree(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, whom no rlimit binds: sudo make test")
async def test_a_fork_bomb_of_root_is_bounded_and_ended_whole(nursery):
    folder = Path(tempfile.mkdtemp())
    runner = Runner(folder, "--max-processes", str(PROCESSES))
    try:
        driver = NativeDriver(socket=runner.path, work_dir=folder, run_dir=folder)
        await nursery.start(driver.run)
        if "cgroup:processes" not in driver.available.limits:
            pytest.skip("needs the pids controller of cgroups (kernel), writable and not in others' use")
        _, group = processes._pids_group()
        group = group / f"edgeorch-runner-{runner.process.pid}"
        if not group.exists():
            pytest.skip("the system bounds this session's processes already (pids.max)")
        assert (group / "pids.max").read_text() == f"{PROCESSES}\n"
        service = NativeService(argv=("sh", "-c", BOMB))
        bomb = await driver.start(Launch(key="bomb.1", name="x", service=service, env={}, output_max=1000))
        most = 0
        with trio.fail_after(60):
            while b"fork" not in printed(bomb.stderr):
                most = max(most, int((group / "pids.current").read_text()))
                await trio.sleep(0.02)
        assert most <= PROCESSES
        assert int((group / "pids.events").read_text().split()[1]) > 0  # how often the limit was met
        with trio.fail_after(60):
            await driver.stop(bomb, 0.2)
            assert (await driver.wait(bomb)).cause == "failed"
        assert (group / "cgroup.procs").read_text().split() == [str(runner.process.pid)]
        after = NativeService(argv=("echo", "still", "here"))
        handle = await driver.start(Launch(key="after.1", name="x", service=after, env={}, output_max=1000))
        assert (await driver.wait(handle)).exit_code == 0
    finally:
        runner.end()
        shutil.rmtree(folder)
    assert not group.exists()


def test_a_service_out_of_memory_ends_alone(node):
    hog = "x = bytearray(200 << 20); print('has it all')"
    task = node.submit(sys.executable, "-c", hog, resources={"memory": 64 << 20})
    ended = node.ended(task)
    assert ended["state"] == "failed"
    assert ended["attempts"][0]["reason"]
    assert b"MemoryError" in node.request("GET", f"/api/v1/tasks/{task['id']}/output")[1]
    assert node.ended(node.submit("true"))["state"] == "succeeded"


def test_a_flood_of_output_is_capped_and_the_node_answers_meanwhile(node):
    task = node.submit("sh", "-c", "exec cat /dev/zero", timeout_s=3)
    while node.get(f"/api/v1/tasks/{task['id']}")["state"] != "timed_out":
        assert node.request("GET", "/healthz")[0] == 200
    (folder,) = (node.folder / "state" / "tasks").glob(f"{task['id']}*")
    assert (folder / "stdout").stat().st_size < 11 << 20
    status, output = node.request("GET", f"/api/v1/tasks/{task['id']}/output?tail=1")
    assert status == 200
    assert len(output) < 11 << 20


def test_a_service_that_ignores_sigterm_is_killed_with_all_it_has_started(node, tmp_path):
    child = f"trap '' TERM; echo $$ >{tmp_path}/child; while :; do sleep 1; done"
    main = f"""trap '' TERM; sh -c "$0" & echo $$ >{tmp_path}/main; wait"""
    task = node.submit("sh", "-c", main, child, timeout_s=1)
    ended = node.ended(task)
    assert ended["state"] == "timed_out"
    assert "timeout_s" in ended["reason"]
    for name in ("main", "child"):
        assert not Path("/proc", (tmp_path / name).read_text().strip()).exists()
