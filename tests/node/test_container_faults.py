"""The container driver while its Engine restarts, crashes or hangs, with an Engine of the test's own."""

import gc
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import pytest
import trio
from docker_images import BUSYBOX, busybox_image, docker

from edgeorch.errors import DriverError
from edgeorch.executor.container import ContainerDriver
from edgeorch.executor.driver import Launch
from edgeorch.model import ContainerService

pytestmark = [
    # The SDK leaves a socket to the garbage collector when it cannot connect.
    pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning"),
    pytest.mark.docker,
    pytest.mark.root,
    pytest.mark.skipif(
        shutil.which("dockerd") is None, reason="no dockerd command: apt-get install docker.io"
    ),
]


class OwnEngine:
    """A dockerd and a containerd beside the machine's own, without networks."""

    def __init__(self, folder, nursery):
        self.folder = folder
        self.nursery = nursery
        self.host = f"unix://{folder}/docker.sock"
        self.process = None

    async def start_containerd(self):
        places = (
            "--address",
            self._in("c.sock"),
            "--root",
            self._in("c-root"),
            "--state",
            self._in("c-state"),
        )
        (self.folder / "containerd.toml").write_text("version = 2\n")
        await self._run("containerd", "--config", self._in("containerd.toml"), *places)

    async def start(self):
        (self.folder / "daemon.json").write_text("{}")
        places = (
            "--data-root",
            self._in("data"),
            "--exec-root",
            self._in("exec"),
            "--pidfile",
            self._in("pid"),
        )
        settings = ("--config-file", self._in("daemon.json"), "--containerd", self._in("c.sock"))
        networks = ("--bridge", "none", "--iptables=false", "--ip6tables=false")
        # A dockerd without a bridge removes the machine's docker0, so it gets a network of its own.
        self.process = await self._run(
            "unshare", "--net", "dockerd", "--host", self.host, *places, *settings, *networks
        )

    async def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        with trio.fail_after(30):
            await self.process.wait()

    def _in(self, name):
        return f"{self.folder}/{name}"

    async def _run(self, *command):
        """Run a daemon; return when it says that it is ready."""
        ready, path = self._in("ready"), self._in(f"{command[0]}.log")
        environment = {**os.environ, "NOTIFY_SOCKET": ready}
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            await notify.bind(ready)
            options = {"stdout": log, "stderr": log, "check": False, "env": environment}
            run = partial(trio.run_process, command, deliver_cancel=self._end, **options)
            process = await self.nursery.start(run)
            os.close(log)
            with trio.fail_after(30):
                async with trio.open_nursery() as waiting:
                    waiting.start_soon(self._complain, process, path)
                    while b"READY=1" not in await notify.recv(4096):
                        pass
                    waiting.cancel_scope.cancel()
        await trio.Path(ready).unlink()
        return process

    @staticmethod
    async def _complain(process, path):
        await process.wait()
        raise AssertionError(f"it has ended: {await trio.Path(path).read_text()}")

    @staticmethod
    async def _end(process):
        process.send_signal(signal.SIGCONT)
        process.terminate()
        with trio.move_on_after(20):
            await process.wait()

    async def load_image(self):
        save = await trio.run_process(["docker", "save", BUSYBOX], capture_stdout=True)
        await trio.run_process(
            ["docker", "-H", self.host, "load"], stdin=save.stdout, stdout=subprocess.DEVNULL
        )


@pytest.fixture
async def engine():
    busybox_image()
    with tempfile.TemporaryDirectory(prefix="eo-") as folder:  # a socket's path is short
        async with trio.open_nursery() as containerd, trio.open_nursery() as dockerd:
            engine = OwnEngine(Path(folder), containerd)
            await engine.start_containerd()
            engine.nursery = dockerd
            await engine.start()
            await engine.load_image()
            yield engine
            left = docker("-H", engine.host, "ps", "-aq").stdout.split()
            if left:
                docker("-H", engine.host, "rm", "-f", *left)
            await engine.end()  # before its containerd, which it needs to end
            containerd.cancel_scope.cancel()
        # what a killed dockerd has left mounted
        mounted = [line.split()[1] for line in (await trio.Path("/proc/mounts").read_text()).splitlines()]
        for place in reversed([place for place in mounted if place.startswith(folder)]):
            await trio.run_process(["umount", place])
    gc.collect()  # while the filter above holds


@pytest.fixture
async def driver(engine, nursery, tmp_path):
    driver = ContainerDriver(engine.host, "testnode00", "s", tmp_path, rng=random.Random(1))
    await nursery.start(driver.run)
    return driver


def launch(*args, key="t.1"):
    service = ContainerService(image=BUSYBOX, options=("--network", "none", "--init"), args=args)
    return Launch(key=key, name="t", service=service, env={}, output_max=1 << 20)


async def until_available(driver, *, available):
    with trio.fail_after(30):
        while bool(driver.available.version) != available:
            await driver.changed.wait()


async def test_an_engine_that_restarts_takes_its_containers_with_it(engine, driver):
    handle = await driver.start(launch("sh", "-c", "echo up; exec sleep 100"))
    with trio.fail_after(20):
        while await trio.Path(handle.stdout).read_bytes() != b"up\n":  # noqa: ASYNC110  nobody tells of it
            await trio.sleep(0.01)
    await engine.end()
    await until_available(driver, available=False)
    assert "Docker Engine" in driver.available.reason
    with pytest.raises(DriverError) as info:
        await driver.start(launch("true", key="t.2"))
    assert info.value.reason == "driver_unavailable"
    await engine.start()
    with trio.fail_after(30):
        end = await driver.wait(handle)
    assert end.cause in ("node_lost", "failed")
    assert await trio.Path(handle.stdout).read_bytes() == b"up\n"
    await until_available(driver, available=True)
    await driver.destroy(handle)
    assert docker("-H", engine.host, "ps", "-aq").stdout == ""


async def test_an_engine_that_crashes(engine, driver):
    handle = await driver.start(launch("sh", "-c", "echo up; exec sleep 100"))
    await engine.end(signal.SIGKILL)
    await until_available(driver, available=False)
    await driver.destroy(handle)  # queued
    assert driver.statistics()["containers_to_remove"] == 1
    await engine.start()
    await until_available(driver, available=True)
    again = await driver.start(launch("true", key="t.2"))
    with trio.fail_after(20):
        assert (await driver.wait(again)).exit_code == 0
    await driver.destroy(again)
    assert driver.statistics()["containers_to_remove"] == 0
    assert docker("-H", engine.host, "ps", "-aq").stdout == ""


async def test_an_engine_that_hangs_and_comes_back(engine, driver):
    handle = await driver.start(launch("sh", "-c", "echo 1; sleep 8; echo 2"))
    engine.process.send_signal(signal.SIGSTOP)
    failures = []

    async def call():
        with pytest.raises(DriverError) as info:
            await driver.prepare(launch("true"), print)
        failures.append(info.value.reason)

    async with trio.open_nursery() as nursery:
        for _ in range(20):  # more than there are threads
            nursery.start_soon(call)
        with trio.fail_after(20):
            await until_available(driver, available=False)
    assert failures == ["driver_unavailable"] * 20
    engine.process.send_signal(signal.SIGCONT)
    await until_available(driver, available=True)
    with trio.fail_after(30):
        end = await driver.wait(handle)
    assert (end.exit_code, end.cause) == (0, "")
    assert await trio.Path(handle.stdout).read_bytes() == b"1\n2\n"
    await driver.destroy(handle)


async def test_an_engine_that_appears_later_gets_rid_of_strays(engine, tmp_path, nursery, monkeypatch):
    monkeypatch.setattr("edgeorch.executor.container.STRAYS_AFTER_S", 0.1)
    first = ContainerDriver(engine.host, "testnode00", "s", tmp_path)
    async with trio.open_nursery() as inner:
        await inner.start(first.run)
        await first.start(launch("sleep", "100"))
        inner.cancel_scope.cancel()
    engine.process.send_signal(signal.SIGSTOP)
    driver = ContainerDriver(engine.host, "testnode00", "s", tmp_path)
    with trio.fail_after(5):
        await nursery.start(driver.run)
    assert await driver.recover() == {}
    command = ["docker", "-H", engine.host, "events", "--filter", "event=destroy"]
    events = await nursery.start(partial(trio.run_process, command, stdout=subprocess.PIPE, check=False))
    engine.process.send_signal(signal.SIGCONT)
    line = b""
    with trio.fail_after(30):
        while not line.endswith(b"\n"):  # the command writes a line in several pieces
            line += await events.stdout.receive_some()
    events.terminate()
    assert b"edgeorch.attempt=t.1" in line
