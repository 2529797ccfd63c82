"""The parts of the container driver that need no Engine."""

import errno
import random
import signal
import socket
from contextlib import suppress

import pytest
import trio

from edgeorch.errors import DriverError
from edgeorch.executor import container_socket
from edgeorch.executor.container import ContainerDriver
from edgeorch.executor.container_body import body_for
from edgeorch.executor.container_output import Demux, Source, copy
from edgeorch.executor.container_pull import PullProgress
from edgeorch.executor.container_state import exit_of
from edgeorch.executor.driver import Launch
from edgeorch.model import ContainerService


def frame(number, data):
    return bytes([number, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


class Chunks:
    def __init__(self, *chunks):
        self.chunks = list(chunks)

    def read(self):
        return self.chunks.pop(0) if self.chunks else b""

    def close(self):
        self.chunks.clear()


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 1000])
def test_demux_takes_any_cut(size):
    data = frame(1, b"out1") + frame(2, b"err") + frame(1, b"") + frame(1, b"out2" * 100)
    demux = Demux(tty=False)
    found = {1: b"", 2: b""}
    for start in range(0, len(data), size):
        for number, piece in demux.feed(data[start : start + size]):
            found[number] += bytes(piece)
    assert found == {1: b"out1" + b"out2" * 100, 2: b"err"}


def write(folder, source, *chunks, tty=False, max_bytes=1000):
    out, err = folder / "out", folder / "err"
    copy(Chunks(*chunks), out, err, max_bytes=max_bytes, tty=tty, source=source)
    return out.read_bytes(), err.read_bytes()


def test_a_replay_skips_what_the_files_hold(tmp_path):
    first = frame(1, b"abc") + frame(2, b"x")
    assert write(tmp_path, Source.START, first) == (b"abc", b"x")
    assert write(tmp_path, Source.REPLAY, first, frame(1, b"def") + frame(2, b"y")) == (b"abcdef", b"xy")
    assert write(tmp_path, Source.NOW, frame(1, b"ghi")) == (b"abcdefghi", b"xy")
    assert write(tmp_path, Source.START, frame(1, b"new")) == (b"new", b"")


def test_a_replay_of_capped_output_repeats_nothing(tmp_path):
    write(tmp_path, Source.START, frame(1, b"0123456789"), max_bytes=4)
    before = (tmp_path / "out").read_bytes()
    write(tmp_path, Source.REPLAY, frame(1, b"0123456789"), max_bytes=4)
    assert (tmp_path / "out").read_bytes() == before


@pytest.mark.parametrize("text", [b"a\xff\xfeb\xc3\xa9", b"\xe2\x82x", b"ab\xe2\x82", b"plain"])
def test_a_json_log_repeats_nothing_where_bytes_were_replaced(tmp_path, text):
    replaced = {
        b"a\xff\xfeb\xc3\xa9": "a\ufffd\ufffdb\u00e9",
        b"\xe2\x82x": "\ufffd\ufffdx",
        b"ab\xe2\x82": "ab\u20ac",
    }
    log = replaced.get(text, "plain").encode()
    rest = b"\xac" if text.endswith(b"\x82") else b""
    write(tmp_path, Source.START, frame(1, text))
    assert write(tmp_path, Source.JSON_REPLAY, frame(1, log + b" more"))[0] == text + rest + b" more"


def test_a_terminal_is_plain(tmp_path):
    assert write(tmp_path, Source.START, b"any\x01bytes", tty=True) == (b"any\x01bytes", b"")


def test_pull_progress_speaks_at_most_once_a_second():
    progress = PullProgress("img")
    assert progress.feed({"status": "Pulling from library/img", "id": "latest"}, 0.0) == ""
    assert progress.feed({"status": "Pulling fs layer", "id": "a"}, 0.0) == "pulling img: 0 of 1 layers"
    loading = {
        "status": "Downloading",
        "id": "a",
        "progressDetail": {"current": 1_000_000, "total": 4_000_000},
    }
    assert progress.feed(loading, 0.5) == ""
    assert progress.feed(loading, 1.5) == "pulling img: 0 of 1 layers, 25 % of 4.0 MB"
    assert (
        progress.feed({"status": "Download complete", "id": "a"}, 3.0)
        == "pulling img: 0 of 1 layers, 100 % of 4.0 MB"
    )
    assert (
        progress.feed({"status": "Pull complete", "id": "a"}, 4.5)
        == "pulling img: 1 of 1 layers, 100 % of 4.0 MB"
    )


@pytest.mark.parametrize(
    ("state", "outage", "code", "cause", "words"),
    [
        ({"ExitCode": 0}, False, 0, "", ""),
        ({"ExitCode": 2}, False, 2, "failed", "exit code 2"),
        ({"ExitCode": 137}, False, 137, "failed", "SIGKILL"),
        ({"ExitCode": 137}, True, 137, "node_lost", "Docker Engine was away"),
        ({"ExitCode": 1}, True, 1, "failed", "exit code 1"),
        ({"ExitCode": 137, "OOMKilled": True}, True, 137, "oom", "memory"),
        ({"ExitCode": 0, "OOMKilled": True}, False, 0, "oom", "memory"),
        ({"ExitCode": 128, "Error": "no cgroup"}, False, 128, "failed", "no cgroup"),
    ],
)
def test_exit_of(state, outage, code, cause, words):
    end = exit_of(state, outage=outage)
    assert (end.exit_code, end.cause) == (code, cause)
    assert words in end.reason


def body(*options, api=(1, 41), **fields):
    service = ContainerService(image="img", options=options)
    launch = Launch(key="t.1", name="n", service=service, env={"E": "1"}, output_max=5, **fields)
    return body_for(launch, node_id="n", store_id="s", api_version=api, read_file=lambda path: b"")


def test_the_address_moves_to_the_endpoint_for_new_engines():
    mac = ("--mac-address", "92:d0:c6:0a:29:33")
    assert body(*mac)["NetworkingConfig"]["EndpointsConfig"] == {}
    new = body(*mac, "--network", "web", api=(1, 44))
    assert new["NetworkingConfig"]["EndpointsConfig"] == {"web": {"MacAddress": mac[1]}}


def test_the_nodes_variables_come_last():
    assert body("-e", "E=mine", "-e", "A=1")["Env"] == ["E=mine", "A=1", "E=1"]


def test_a_sliver_of_cpu_is_what_the_engine_takes():
    assert body(cpus=0.001)["HostConfig"]["NanoCpus"] == 10_000_000


def test_bad_options_are_an_invalid_service():
    with pytest.raises(DriverError, match="--nope") as info:
        body("--nope")
    assert info.value.reason == "invalid_service"


def test_look_tells_apart_why_there_is_no_engine(tmp_path, monkeypatch):
    path = tmp_path / "docker.sock"

    def why():
        with pytest.raises(DriverError) as info:
            container_socket.look(f"unix://{path}")
        assert info.value.reason == "driver_unavailable"
        return str(info.value)

    assert "does not exist" in why()
    path.write_text("")
    assert "not a socket" in why()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert "not running" in why()
        server.listen()
        container_socket.look(f"unix://{path}")
        container_socket.look("tcp://127.0.0.1:1")

        def denied(self, address):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(socket.socket, "connect", denied)
        assert "group docker" in why()


def test_resolve_prefers_the_configuration(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://h:1")
    assert container_socket.resolve("unix:///a") == "unix:///a"
    assert container_socket.resolve("") == "tcp://h:1"
    monkeypatch.delenv("DOCKER_HOST")
    assert container_socket.resolve("").endswith("docker.sock")


async def test_without_an_engine_the_driver_starts_and_says_why(tmp_path, nursery):
    driver = ContainerDriver(f"unix://{tmp_path}/none.sock", "n", "s", tmp_path, rng=random.Random(1))
    with trio.fail_after(5):
        await nursery.start(driver.run)
    assert "does not exist" in driver.available.reason
    assert driver.available.hint
    assert await driver.recover() == {}
    launch = Launch(key="t.1", name="n", service=ContainerService(image="i"), env={}, output_max=5)
    for call in (driver.prepare(launch, print), driver.start(launch)):
        with pytest.raises(DriverError) as info:
            await call
        assert info.value.reason == "driver_unavailable"


async def test_an_engine_that_stays_away_loses_its_containers(tmp_path, nursery):
    driver = ContainerDriver(f"unix://{tmp_path}/none.sock", "n", "s", tmp_path, lost_after_s=0.05)
    await nursery.start(driver.run)
    handle = driver._handle("0" * 64, "t.1")
    with trio.fail_after(5):
        end = await driver.wait(handle)
    assert end.cause == "node_lost"
    assert "does not exist" in end.reason
    await driver.destroy(handle)
    assert driver.statistics()["containers_to_remove"] == 1


async def test_a_socket_that_answers_nonsense(tmp_path):
    path = tmp_path / "docker.sock"
    async with trio.open_nursery() as nursery:
        with trio.socket.socket(socket.AF_UNIX) as listener:
            await listener.bind(str(path))
            listener.listen()

            async def nonsense():
                while True:
                    peer, _ = await listener.accept()
                    with peer, suppress(OSError):  # the first look only connects
                        await peer.send(b"SSH-2.0-nope\r\n")

            nursery.start_soon(nonsense)
            driver = ContainerDriver(f"unix://{path}", "n", "s", tmp_path)
            changed = driver.changed
            await nursery.start(driver.run)
            with trio.fail_after(5):
                await changed.wait()
            assert "cannot be reached" in driver.available.reason
            nursery.cancel_scope.cancel()


def test_signal_numbers_are_those_of_this_machine():
    assert exit_of({"ExitCode": 128 + signal.SIGSEGV}, outage=False).reason == "exit code 139 (SIGSEGV)"


@pytest.mark.parametrize(
    ("code", "memory", "reason"),
    [
        (137, 8 << 20, "exit code 137 (SIGKILL), perhaps out of memory: its limit is 8 MiB"),
        (137, 0, "exit code 137 (SIGKILL)"),
        (1, 8 << 20, "exit code 1"),
    ],
)
def test_a_kill_below_a_memory_limit_says_what_it_may_have_been(code, memory, reason):
    assert exit_of({"ExitCode": code}, outage=False, memory=memory).reason == reason
