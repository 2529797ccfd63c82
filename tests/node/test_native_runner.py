"""The runner process by itself: its socket, its users, its end."""

import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from odd_values import odd
from real_runner import Runner

from edgeorch import config as config_of
from edgeorch.cli import checks
from edgeorch.config import Config, Loaded
from edgeorch.executor.driver import Launch
from edgeorch.executor.native import NativeDriver
from edgeorch.model import NativeService
from edgeorch.runner import protocol
from edgeorch.runner.exits import Exits
from edgeorch.runner.landlock import Landlock

pytestmark = pytest.mark.timeout(60)


TASK = "01j00000000000000000000000-0123456789"
IGNORES = "trap '' TERM; while :; do sleep 0.1; done"


@pytest.fixture
def runner(tmp_path):
    made = Runner(tmp_path)
    yield made
    made.end()


def start(client, key, *argv):
    client.send(protocol.Start(id=1, key=key, argv=argv, env={}, output_max=1000))
    return client.receive()


def exits(folder):
    """What a runner has left on disk."""
    kept = Exits(str(folder / "tasks/.exits"))
    kept.load()
    return kept.known


def test_welcome_says_who_runs_services(runner):
    assert runner.said == "listening\n"
    assert runner.path.stat().st_mode & 0o777 == 0o660
    client = runner.connect()
    welcome = client.receive()
    assert (welcome.pid, welcome.uid) == (runner.process.pid, os.getuid())
    client.sock.close()


@pytest.mark.parametrize("closed", [False, True])
def test_the_doctor_says_what_limits_services_and_keeps_them_apart(tmp_path, closed):
    runner = Runner(tmp_path, *(("--close", str(tmp_path)) if closed else ()))
    config = Config(runner=config_of.Runner(socket=str(runner.path)))
    found = {each.check: each for each in checks.runner(Loaded(config=config, path=None, origins={}))}
    assert found["runner"].state == found["limits"].state == "ok"
    assert "memory" in found["limits"].detail
    assert found["isolation"].state == ("ok" if closed and not Landlock([tmp_path]).missing else "warning")
    runner.end()


@pytest.mark.parametrize("seconds", [float("inf"), float("-inf"), float("nan"), 1e300, -1e300])
def test_no_time_that_a_daemon_names_ends_the_runner(runner, seconds):
    """One that was endless ended it, and with it every service."""
    client = runner.connect()
    client.receive()
    lasting = {"argv": ("sleep", "60"), "env": {}, "output_max": 1000}
    client.send(protocol.Start(id=1, key=f"{TASK}.1", **lasting))
    client.send(protocol.Start(id=2, key=f"{TASK}.2", lease_s=seconds, **lasting))
    client.send(protocol.Start(id=3, key=f"{TASK}.3", lease_s=60.0, **lasting))
    client.send(protocol.Renew(leases={f"{TASK}.3": seconds}))
    client.send(protocol.Start(id=4, key=f"{TASK}.4", **{**lasting, "argv": ("sh", "-c", IGNORES)}))
    answered = [client.receive() for _ in range(4)]
    client.send(protocol.Stop(id=5, key=f"{TASK}.4", grace_s=seconds))
    client.send(protocol.Start(id=6, key=f"{TASK}.5", cpus=seconds, **lasting))
    client.send(protocol.List(id=7))
    while not isinstance(answered[-1], protocol.Listed):
        answered.append(client.receive())
        assert answered[-1] is not None, runner.end()
    assert f"{TASK}.1" in {each.key for each in answered[-1].attempts if each.ended is None}
    client.sock.close()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_a_daemon_sends_ends_the_runner(runner, seed):
    rng = random.Random(seed)
    keys = [f"{TASK}.{number}" for number in range(1, 4)]
    words = {"words": [*keys, "true", "A=b", "/"], "fixed": {"key": keys[0]}}
    start, stop = (protocol.Start, protocol.Start), (protocol.Withdraw, protocol.Stop, protocol.Forget)
    kinds = (*start, *stop, protocol.Renew, protocol.List)
    keeper = runner.connect()
    assert isinstance(keeper.receive(), protocol.Welcome)
    for _ in range(150):
        kind = rng.choice(kinds)
        words["fixed"] = {"type": kind.__name__, "key": rng.choice(keys)} if rng.random() < 0.8 else {}
        body = msgspec.msgpack.encode(odd(rng, kind, **words))
        client = runner.connect()
        client.sock.sendall(len(body).to_bytes(4, "big") + body)
        client.sock.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while client.sock.recv(1 << 16):
                pass
        client.sock.close()
    keeper.send(protocol.List(id=7))
    while not isinstance(keeper.receive(), protocol.Listed):
        assert runner.process.poll() is None, runner.end()
    keeper.sock.close()


@pytest.mark.parametrize("data", [b"\xff" * 50, struct.pack(">I", 4) + b"junk", b"GET / HTTP/1.1\r\n\r\n"])
def test_garbage_ends_that_connection_only(runner, data):
    good, bad = runner.connect(), runner.connect()
    assert good.receive()
    assert bad.receive()
    bad.sock.sendall(data)
    assert bad.receive() is None
    assert isinstance(start(good, "a.1", "true"), protocol.Started)
    assert good.receive().key == "a.1"
    for client in (good, bad):
        client.sock.close()


def test_every_daemon_hears_of_an_exit(runner):
    first, second = runner.connect(), runner.connect()
    assert first.receive()
    assert second.receive()
    start(first, "a.1", "false")
    assert (
        first.receive()
        == second.receive()
        == protocol.Exited(
            key="a.1",
            ended=protocol.Ended(exit_code=1, cause="failed", reason="exited with code 1", silent=True),
        )
    )
    for client in (first, second):
        client.sock.close()


def after_a_forgotten_attempt(runner, message):
    """A client that has sent, with ``message`` right behind it, that the ended ``a.1`` may be forgotten."""
    client = runner.connect()
    client.receive()
    start(client, "a.1", "true")
    assert client.receive().key == "a.1"
    forget = protocol.Forget(id=protocol.UNASKED, key="a.1")
    client.sock.sendall(protocol.encode(forget) + protocol.encode(message))
    return client


def test_an_attempt_that_was_forgotten_just_now_is_started_again(runner):
    again = protocol.Start(id=2, key="a.1", argv=("false",), env={}, output_max=1000)
    client = after_a_forgotten_attempt(runner, again)
    assert isinstance(client.receive(), protocol.Started)
    assert client.receive().ended.exit_code == 1
    client.sock.close()


def test_an_answer_says_that_what_came_before_it_is_forgotten(runner):
    client = after_a_forgotten_attempt(runner, protocol.List(id=2))
    assert client.receive().attempts == ()
    client.sock.close()


def test_a_long_list_comes_in_parts(tmp_path):
    for number in range(2 * protocol.LIST_CHUNK):
        (tmp_path / f"tasks/a.{number}/work").mkdir(parents=True)
    runner = Runner(tmp_path)
    client = runner.connect()
    assert client.receive()
    client.send(protocol.List(id=7))
    parts = [client.receive(), client.receive()]
    assert [part.more for part in parts] == [True, False]
    assert len({each.key for part in parts for each in part.attempts}) == 2 * protocol.LIST_CHUNK
    client.sock.close()
    runner.end()


def test_sigterm_ends_what_runs_and_records_it(runner):
    client = runner.connect()
    client.receive()
    start(client, "a.1", "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    runner.process.send_signal(signal.SIGTERM)
    ended = client.receive().ended
    assert ended.cause == "node_lost"
    assert client.receive() is None
    assert runner.process.wait(20) == 0
    assert not runner.path.exists()
    assert exits(runner.folder) == {"a.1": ended}
    client.sock.close()


def test_who_comes_while_no_descriptor_is_left_is_let_in_later(tmp_path):
    runner = Runner(tmp_path)
    pid = runner.process.pid
    most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), most[1]))
    client = runner.connect()
    assert "cannot take a connection: Too many open files" in runner.process.stderr.readline()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, most)
    assert isinstance(client.receive(), protocol.Welcome)
    client.sock.close()
    assert runner.end().count("cannot take a connection") < 3  # once a second, not as fast as it can


def test_a_lonely_runner_ends(tmp_path):
    runner = Runner(tmp_path, "--linger-s", "0.2")
    client = runner.connect()
    client.receive()
    start(client, "a.1", "sleep", "1000")
    client.sock.close()
    assert runner.process.wait(20) == 0
    assert exits(tmp_path)["a.1"].cause == "node_lost"
    assert "no daemon has come back" in runner.end()


def test_a_socket_that_a_dead_runner_left_is_replaced(runner, tmp_path):
    runner.process.kill()
    runner.process.wait()
    assert runner.path.exists()
    second = Runner(tmp_path)
    assert second.said == "listening\n"
    assert second.end() == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--allow", "no-such-user-here"], "no such user"),
        (["--socket", "/" + "x" * 200], "AF_UNIX path too long"),
        (["--work-dir", "/proc/nothing"], "/proc/nothing"),
    ],
)
def test_what_cannot_start_says_one_sentence(tmp_path, options, words):
    runner = Runner(tmp_path, *options)
    assert runner.said == ""
    assert runner.process.wait(20) == 78
    errors = runner.end()
    assert words in errors
    assert errors.count("\n") == 1


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user: sudo make test")
def test_other_users_are_refused():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    runner = Runner(folder)
    runner.path.chmod(0o666)
    code = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(1000)); print(s.recv(1000))"
    )
    argv = [sys.executable, "-c", code, str(runner.path)]
    try:
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert "does not serve user 65534" in said
        assert said.endswith("b''\n")
    finally:
        errors = runner.end()
        shutil.rmtree(folder)
    assert "refused a connection of user 65534" in errors


def look(handle):
    output = Path(handle.stdout)
    return output.read_text(), output.stat().st_mode & 0o777, output.parent.stat().st_mode & 0o7777


DROPPED = """
import ctypes, os, sys
import edgeorch.runner.__main__ as runner
runner._parser()  # loads what is loaded late: the other user may not read this interpreter
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is its own again, as after an exec
sys.exit(runner.main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user: sudo make test")
async def test_a_runner_with_a_user_of_its_own(nursery):
    folder = Path(tempfile.mkdtemp())
    os.chown(folder, 65534, 65534)
    (folder / "tasks").mkdir()
    os.chown(folder / "tasks", 65534, 65534)
    (folder / "tasks").chmod(0o2770)
    runner = Runner(folder, program=["-c", DROPPED])
    try:
        driver = NativeDriver(socket=runner.path, work_dir=folder, run_dir=folder)
        await nursery.start(driver.run)
        assert driver.other_user
        service = NativeService(argv=("sh", "-c", "id -u; touch kept; cat /etc/shadow"))
        handle = await driver.start(Launch(key="a.1", name="x", service=service, env={}, output_max=1000))
        end = await driver.wait(handle)
        assert end.exit_code == 1
        assert look(handle) == ("65534\n", 0o640, 0o2770)
        await driver.destroy(handle)
    finally:
        runner.end()
        shutil.rmtree(folder)
