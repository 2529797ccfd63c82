"""The native driver with a real runner and real processes."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from edgeorch.errors import DriverError
from edgeorch.executor.driver import Launch
from edgeorch.executor.native import NativeDriver
from edgeorch.model import ContainerService, NativeService
from edgeorch.runner import protocol
from edgeorch.runner.exits import Exits

pytestmark = pytest.mark.timeout(60)


def launch(*argv, key="task.1", env=None, **more):
    service = NativeService(argv=argv, env=env or {})
    more.setdefault("output_max", 1 << 20)
    return Launch(key=key, name="test", service=service, env={"EDGEORCH_TASK_ID": "task"}, **more)


def python(code, *arguments):
    return (sys.executable, "-ISc", code, *map(str, arguments))


@pytest.fixture
async def driver(nursery, tmp_path):
    made = NativeDriver(socket=None, work_dir=tmp_path / "tasks", run_dir=tmp_path / "run")
    await nursery.start(made.run)
    return made


def read(path):
    return Path(path).read_bytes()


def text(path):
    return read(path).decode()


def mode(path):
    return stat.S_IMODE(Path(path).stat().st_mode)


def exits(folder):
    kept = Exits(str(folder / "tasks/.exits"))
    kept.load()
    return kept.known


def names_beside(handle):
    return sorted(path.name for path in Path(handle.stdout).parent.iterdir())


def key_of(pid):
    return Path(f"/proc/{pid}/cwd").readlink().parent.name


class Fifo:
    """What a service says, as an event."""

    def __init__(self, path):
        self.path = path
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    async def line(self):
        text = b""
        while not text.endswith(b"\n"):
            with trio.fail_after(20):
                await trio.lowlevel.wait_readable(self._fd)
            with contextlib.suppress(
                BlockingIOError
            ):  # a writer that has come and not written yet wakes us too
                text += os.read(self._fd, 1)
        return text.decode().strip()

    def close(self):
        os.close(self._fd)


@pytest.fixture
def fifo(tmp_path):
    made = Fifo(tmp_path / "fifo")
    yield made
    made.close()


class Watched:
    """A process that is not our child, by pidfd."""

    def __init__(self, pid):
        self.pidfd = os.pidfd_open(int(pid))

    async def gone(self):
        with trio.fail_after(20):
            await trio.lowlevel.wait_readable(self.pidfd)
        os.close(self.pidfd)


async def run(driver, order):
    handle = await driver.start(order)
    with trio.fail_after(30):
        end = await driver.wait(handle)
    return handle, end


async def gone(driver, handle):
    """Returns when the runner has forgotten it: requests are served in order."""
    await driver.destroy(handle)
    await driver.stop(handle, 0)


async def test_runs_a_program_in_a_clean_environment(driver, monkeypatch):
    code = "import os; print(*os.environ); print(os.getcwd()); print(os.umask(0))"
    handle, end = await run(driver, launch(*python(code), env={"Q": "90"}))
    assert (end.exit_code, end.cause) == (0, "")
    env, cwd, umask = text(handle.stdout).splitlines()
    names = set(env.split())
    assert {"PATH", "HOME", "USER", "Q", "EDGEORCH_TASK_ID", "EDGEORCH_WORK"} <= names
    plain = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ"}
    assert names <= plain | {"Q", "EDGEORCH_TASK_ID", "EDGEORCH_WORK"}
    assert cwd == str(Path(handle.stdout).parent / "work")
    assert int(umask) == 0o022


async def test_a_service_gets_no_foreign_descriptors_and_default_signals(driver):
    code = (
        "import os, signal; print(sorted(os.listdir('/proc/self/fd')), os.getsid(0) == os.getpid(),"
        " open('/proc/self/status').read().split('SigBlk:')[1].split()[0])"
    )
    handle, _ = await run(driver, launch(*python(code)))
    # The fourth is the listing itself.
    assert text(handle.stdout) == "['0', '1', '2', '3'] True 0000000000000000\n"
    handle, _ = await run(driver, launch("/bin/cat", "/proc/self/status", key="task.2"))
    ignored = int(text(handle.stdout).split("SigIgn:")[1].split()[0], 16)
    # glibc's posix_spawn ignores its own two signals, 32 and 33, in the child; it sets them up anew itself.
    assert ignored & ~0x1_8000_0000 == 0


@pytest.mark.parametrize(
    ("argv", "code", "number"),
    [(("false",), 1, None), (("sh", "-c", "exit 70"), 70, None), (("sh", "-c", "kill -SEGV $$"), None, 11)],
)
async def test_an_exit_says_code_or_signal(driver, argv, code, number):
    _, end = await run(driver, launch(*argv))
    assert (end.exit_code, end.signal, end.cause) == (code, number, "failed")
    assert str(code) in end.reason or "SIGSEGV" in end.reason


async def test_both_streams_are_kept_apart_and_complete(driver):
    handle, _ = await run(driver, launch("sh", "-c", "echo out; echo err >&2"))
    assert text(handle.stdout) == "out\n"
    assert text(handle.stderr) == "err\n"
    assert mode(handle.stdout) == 0o600
    assert mode(Path(handle.stdout).parent) == 0o700


async def test_output_is_capped(driver):
    code = "import os; [os.write(1, b'x' * 65536) for _ in range(200)]"
    handle, end = await run(driver, launch(*python(code), output_max=100_000))
    assert end.exit_code == 0
    kept = read(handle.stdout)
    assert kept.startswith(b"x" * 100_000 + b"\n[edgeorch: output limit")
    assert len(kept) < 101_000


def make(folder, name, content=b"", mode=0o755):
    path = folder / name
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("argv", "reason", "words"),
    [
        (lambda _: ("no-such-program-here",), "no_program", "no-such-program-here"),
        (lambda _: ("/no/such/program",), "no_program", "/no/such/program"),
        (lambda tmp: (str(tmp),), "no_permission", "is a folder"),
        (lambda tmp: (make(tmp, "plain", b"#!/bin/sh\n", 0o644),), "no_permission", "not executable"),
        (lambda tmp: (make(tmp, "bad", b"#!/no/interpreter\n"),), "no_program", "interpreter"),
        (lambda tmp: (make(tmp, "odd", b"\x7fELF of nobody"),), "no_program", "not a program for this"),
        (lambda _: ("",), "invalid_service", "empty"),
        (lambda _: ("true", "a\0b"), "invalid_service", "NUL"),
        (lambda _: ("true", "\ud800"), "invalid_service", "Unicode"),
        (lambda _: ("true", "x" * 200_000), "invalid_service", "too large"),
        (lambda _: ("true", *(["x" * 60_000] * 40)), "invalid_service", "too large"),
        (lambda _: ("true", *(["x" * 60_000] * 80)), "invalid_service", "over the limit"),
    ],
)
async def test_what_cannot_start_says_why_and_leaves_nothing(driver, tmp_path, argv, reason, words):
    with pytest.raises(DriverError, match=words) as caught:
        await driver.start(launch(*argv(tmp_path)))
    assert caught.value.reason == reason
    assert list((tmp_path / "tasks").iterdir()) == []
    assert await driver.recover() == {}
    _, end = await run(driver, launch("true"))
    assert end.exit_code == 0


@pytest.mark.parametrize("env", [{"A=B": "x"}, {"A": "\0"}])
async def test_a_bad_variable_is_refused(driver, env):
    with pytest.raises(DriverError, match="env") as caught:
        await driver.prepare(launch("true", env=env), print)
    assert caught.value.reason == "invalid_service"


async def test_another_kind_of_service_is_refused(driver):
    order = Launch(key="t.1", name="x", service=ContainerService(image="x"), env={}, output_max=1)
    with pytest.raises(DriverError, match="not a native service"):
        await driver.start(order)


@pytest.mark.parametrize("key", ["", "../x", ".x", "a/b", "a" * 200])
async def test_a_key_cannot_leave_the_work_folder(driver, key):
    with pytest.raises(DriverError) as caught:
        await driver.start(launch("true", key=key))
    assert caught.value.reason == "invalid_service"


async def test_start_is_idempotent(driver, fifo):
    order = launch("sh", "-c", f"echo up > {fifo.path}; exec sleep 1000")
    first = await driver.start(order)
    await fifo.line()
    assert await driver.start(order) == first
    assert await driver.recover() == {"task.1": first}
    await driver.stop(first, 5)
    assert await driver.start(order) == first
    assert (await driver.wait(first)).signal == signal.SIGTERM


ESCAPE = """
import os, signal, time
if os.fork():
    {parent}
{first}
os.setsid()
if os.fork():
    os._exit(0)
with open({fifo!r}, "w") as fifo:
    fifo.write(f"{{os.getpid()}}\\n")
time.sleep(1000)
"""
STAY = "time.sleep(1000)"


@pytest.mark.parametrize("ignore", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
async def test_stop_finds_a_daemon_that_has_left_its_session(driver, fifo, ignore):
    code = ESCAPE.format(parent=STAY, first=ignore, fifo=str(fifo.path))
    handle = await driver.start(launch(*python(code)))
    daemon = Watched(await fifo.line())
    await driver.stop(handle, 0.2)
    await daemon.gone()
    assert (await driver.wait(handle)).signal == signal.SIGTERM


async def test_a_daemon_without_any_mark_ends_with_its_service(driver, fifo, tmp_path):
    # Two generations, a session of its own, an empty environment: only "nobody else can own it" is left.
    script = tmp_path / "daemon.py"
    script.write_text(
        "import os, time; os.setsid()\n"
        f"open({str(fifo.path)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(999)"
    )
    code = (
        "import os, sys, time\n"
        "if os.fork():\n    time.sleep(1000)\n"
        "if os.fork():\n    os._exit(0)\n"
        "os.execve(sys.executable, [sys.executable, '-IS', sys.argv[1]], {})"
    )
    handle = await driver.start(launch(*python(code, script)))
    other = await driver.start(launch("sleep", "1000", key="task.2"))
    daemon = Watched(await fifo.line())
    await driver.stop(handle, 5)
    await driver.stop(other, 5)
    await daemon.gone()


async def test_what_a_service_leaves_behind_ends_with_it(driver, fifo):
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = ESCAPE.format(parent="os.wait(); os._exit(3)", first=ignore, fifo=str(fifo.path))
    handle = await driver.start(launch(*python(code)))
    daemon = int(await fifo.line())
    assert (await driver.wait(handle)).exit_code == 3
    with pytest.raises(ProcessLookupError):
        os.kill(daemon, 0)


async def test_a_service_that_ignores_sigterm_is_killed_after_the_grace(driver, fifo):
    handle = await driver.start(
        launch("sh", "-c", f"trap '' TERM; echo up > {fifo.path}; while :; do sleep 1; done")
    )
    await fifo.line()
    await driver.stop(handle, 0.1)
    assert (await driver.wait(handle)).signal == signal.SIGKILL
    await driver.stop(handle, 0.1)


async def test_destroy_keeps_the_output_and_nothing_else(driver, tmp_path):
    handle, _ = await run(driver, launch("sh", "-c", "mkdir -p a/b; echo x > a/b/c; echo out"))
    await driver.destroy(handle)
    assert await driver.recover() == {}
    assert (await driver.wait(handle)).cause == "node_lost"
    assert text(handle.stdout) == "out\n"
    empty, _ = await run(driver, launch("true", key="task.2"))
    await gone(driver, empty)
    assert not Path(empty.stdout).parent.exists()


async def test_the_folder_of_a_service_that_has_left_nothing_is_used_again(driver, tmp_path):
    for number in range(3):
        handle, end = await run(driver, launch("sh", "-c", 'test -z "$(ls -A)"', key=f"task.{number}"))
        assert (end.exit_code, end.silent) == (0, True)
        await gone(driver, handle)
    left = sorted(path.name for path in (tmp_path / "tasks").iterdir() if path.is_dir())
    assert left == [".spare"]
    assert len(list((tmp_path / "tasks/.spare").iterdir())) == 1


async def test_the_folder_of_a_service_that_may_have_left_a_process_is_not(driver, fifo, tmp_path):
    script = tmp_path / "daemon.py"
    script.write_text(
        "import os, time; os.setsid()\n"
        f"open({str(fifo.path)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(999)"
    )
    code = (
        "import os, sys\n"
        "if os.fork():\n    open(sys.argv[2]).read(1); os._exit(0)\n"
        "if os.fork():\n    os._exit(0)\n"
        "os.execve(sys.executable, [sys.executable, '-IS', sys.argv[1]], {})"
    )
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    other = await driver.start(launch("sleep", "1000", key="task.2"))
    handle = await driver.start(launch(*python(code, script, gate)))
    daemon = Watched(await fifo.line())
    gate.write_text("x")
    assert (await driver.wait(handle)).exit_code == 0
    await gone(driver, handle)
    assert names_beside(handle) == []
    await driver.stop(other, 5)
    await daemon.gone()


async def test_a_cancelled_start_leaves_nothing_running(driver, fifo):
    with trio.CancelScope() as scope:
        scope.cancel()
        await driver.start(launch("sh", "-c", f"echo $$ > {fifo.path}; exec sleep 1000"))
    assert scope.cancelled_caught
    # Answered after the cancelled one on the same connection.
    other = await driver.start(launch("true", key="task.2"))
    await driver.wait(other)
    await driver.destroy(other)
    assert await driver.recover() == {}


async def test_two_hundred_at_a_time(driver):
    ends = []

    async def one(number):
        handle, end = await run(
            driver, launch("sh", "-c", f"sleep 0.5; echo {number}; exit {number}", key=f"t.{number}")
        )
        ends.append((number, end.exit_code, text(handle.stdout).strip()))

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(one, number)
    assert sorted(ends) == [(number, number, str(number)) for number in range(200)]


async def test_a_lease_ends_what_is_not_renewed(driver):
    kept = await driver.start(launch("sleep", "1000", key="kept.1", lease_s=0.8))
    lost = await driver.start(launch("sleep", "1000", key="lost.1", lease_s=0.4))
    await driver.renew({"kept.1": 600, "unknown.1": 5})
    with trio.fail_after(20):
        end = await driver.wait(lost)
    assert (end.cause, end.signal) == ("lease_expired", signal.SIGTERM)
    later = await driver.start(launch("sleep", "1000", key="later.1", lease_s=1))
    with trio.fail_after(20):
        assert (await driver.wait(later)).cause == "lease_expired"
    assert (await driver.recover())["kept.1"] == kept
    await driver.stop(kept, 5)
    assert (await driver.wait(kept)).cause == "failed"


async def test_a_killed_runner_is_replaced_and_what_it_ran_is_lost(driver, fifo):
    done, _ = await run(driver, launch("false", key="done.1"))
    running = await driver.start(launch("sh", "-c", f"echo $$ > {fifo.path}; exec sleep 1000"))
    service = Watched(await fifo.line())
    changed = driver.changed
    os.kill(driver._process.pid, signal.SIGKILL)
    await changed.wait()
    with trio.fail_after(20):
        end = await driver.wait(running)
    assert end.cause == "node_lost"
    await service.gone()
    assert (await driver.wait(done)).exit_code == 1
    _, end = await run(driver, launch("true", key="new.1"))
    assert end.exit_code == 0
    assert driver.available.version


async def test_destroy_while_the_runner_is_away_is_made_up_for(driver, tmp_path):
    handle, _ = await run(driver, launch("false"))
    changed = driver.changed
    os.kill(driver._process.pid, signal.SIGKILL)
    await changed.wait()
    assert driver.available.reason
    with pytest.raises(DriverError) as caught:
        await driver.start(launch("true", key="task.2"))
    assert caught.value.reason == "driver_unavailable"
    await driver.destroy(handle)
    changed = driver.changed
    with trio.fail_after(20):
        await changed.wait()
    assert await driver.recover() == {}
    # Answered after what the driver sent when it was connected again.
    await driver.start(launch("true", key="task.3"))
    # Once more: what a round brings is on disk before the next.
    await driver.start(launch("true", key="task.3"))
    assert names_beside(handle) == []
    assert handle.ref not in exits(tmp_path)


async def test_what_a_dying_runner_has_not_read_the_next_one_is_told(driver, tmp_path):
    handle, _ = await run(driver, launch("false"))
    os.kill(driver._process.pid, signal.SIGSTOP)
    await driver.destroy(handle)
    os.kill(driver._process.pid, signal.SIGKILL)
    with trio.fail_after(20):
        for _ in range(2):
            await driver.changed.wait()
    assert driver.available.version
    assert await driver.recover() == {}
    for _ in range(2):
        await driver.start(launch("true", key="task.2"))
    assert handle.ref not in exits(tmp_path)


async def test_a_clean_stop_leaves_nothing(tmp_path, fifo):
    async with trio.open_nursery() as nursery:
        driver = NativeDriver(socket=None, work_dir=tmp_path / "tasks", run_dir=tmp_path / "run")
        await nursery.start(driver.run)
        assert not driver.other_user
        runner = Watched(driver._process.pid)
        await driver.start(launch("sh", "-c", f"echo $$ > {fifo.path}; exec sleep 1000"))
        service = Watched(await fifo.line())
        nursery.cancel_scope.cancel()
    await service.gone()
    await runner.gone()
    assert list((tmp_path / "run").iterdir()) == []
    ended = protocol.Ended(
        signal=signal.SIGTERM, cause="node_lost", reason="the runner was stopped", silent=True
    )
    assert exits(tmp_path) == {"task.1": ended}


DAEMON = """
import sys, trio
from pathlib import Path
from edgeorch.executor.driver import Launch
from edgeorch.executor.native import NativeDriver
from edgeorch.model import NativeService
async def main():
    tmp, fifo = Path(sys.argv[1]), sys.argv[2]
    driver = NativeDriver(socket=None, work_dir=tmp / "tasks", run_dir=tmp / "run")
    async with trio.open_nursery() as nursery:
        await nursery.start(driver.run)
        for key, lease in (("leased.1", 0.5), ("free.1", None)):
            service = NativeService(argv=("sh", "-c", f"echo $$ > {fifo}; exec sleep 1000"))
            order = Launch(key=key, name="x", service=service, env={}, output_max=9, lease_s=lease)
            await driver.start(order)
trio.run(main)
"""


def start_daemon(tmp_path, fifo):
    return subprocess.Popen([sys.executable, "-c", DAEMON, str(tmp_path), str(fifo.path)])


async def test_a_killed_daemon_loses_leased_services_and_finds_the_others_again(tmp_path, fifo):
    daemon = start_daemon(tmp_path, fifo)
    first, second = await fifo.line(), await fifo.line()
    daemon.kill()
    daemon.wait()
    leased = {key_of(pid): pid for pid in (first, second)}
    await Watched(leased["leased.1"]).gone()
    os.kill(int(leased["free.1"]), 0)
    async with trio.open_nursery() as nursery:
        driver = NativeDriver(socket=None, work_dir=tmp_path / "tasks", run_dir=tmp_path / "run")
        await nursery.start(driver.run)
        handles = await driver.recover()
        assert handles.keys() == {"leased.1", "free.1"}
        assert (await driver.wait(handles["leased.1"])).cause == "lease_expired"
        await driver.stop(handles["free.1"], 5)
        runner = Watched(driver._process.pid)
        nursery.cancel_scope.cancel()
    await runner.gone()


async def test_a_work_folder_in_use_is_refused(driver, tmp_path, capfd):
    async with trio.open_nursery() as nursery:
        second = NativeDriver(socket=None, work_dir=tmp_path / "tasks", run_dir=tmp_path / "other")
        changed = second.changed
        nursery.start_soon(second.run)
        with trio.fail_after(20):
            await changed.wait()
        assert "ended at its start" in second.available.reason
        nursery.cancel_scope.cancel()
    assert "another runner uses this folder" in capfd.readouterr().err


async def test_a_missing_unit_is_named(tmp_path, autojump_clock):
    async with trio.open_nursery() as nursery:
        driver = NativeDriver(socket=tmp_path / "runner.sock", work_dir=tmp_path, run_dir=tmp_path)
        await nursery.start(driver.run)
        assert str(tmp_path) in driver.available.reason
        assert "edgeorch-runner" in driver.available.hint
        assert await driver.recover() == {}
        nursery.cancel_scope.cancel()
