"""What the native driver and its scripted twin have in common: one set of tests for both."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from edgeorch.errors import DriverError
from edgeorch.executor import native
from edgeorch.executor.driver import Launch, NoTurnError
from edgeorch.executor.native import NativeDriver
from edgeorch.model import NativeService
from edgeorch.testing import drivers
from edgeorch.testing.drivers import ScriptedDriver, ScriptedHost

pytestmark = pytest.mark.timeout(60)


@dataclass
class Kind:
    """How to make a driver, again after a restart of the daemon, and how to say things to it."""

    make: object
    words: dict
    up: object
    """Returns when ``deaf`` no longer hears SIGTERM."""


def start_runner(folder):
    argv = [sys.executable, "-m", "edgeorch.runner", "--work-dir", str(folder / "tasks")]
    process = subprocess.Popen(
        [*argv, "--socket", str(folder / "runner.sock"), "--grace-s", "0.2"], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"listening\n"
    return process


def end_runner(process, folder):
    process.terminate()
    assert process.wait() == 0
    process.stdout.close()
    assert not (folder / "runner.sock").exists()


REAL = {
    "exit 3": ("sh", "-c", "exit 3"),
    "segv": ("sh", "-c", "kill -SEGV $$"),
    "speak": ("sh", "-c", "echo out; echo err >&2"),
    "deaf": ("sh", "-c", "trap '' TERM; echo up > ../../fifo; while :; do sleep 1; done"),
    "flood": ("seq", "1", "100000"),
}
SCRIPTS = {
    "exit 3": ("exit", "3"),
    "segv": ("signal", "11"),
    "speak": ("print", "out", ";", "print-error", "err"),
    "deaf": ("ignore-term", ";", "sleep", "1000"),
    "flood": ("print", "1\n2\n3\n" + "x" * 10_000),
}


@pytest.fixture(params=["native", "scripted"])
async def kind(request, tmp_path, nursery):
    if request.param == "scripted":
        host = ScriptedHost(tmp_path)
        await nursery.start(host.run)
        yield Kind(lambda: ScriptedDriver(host), SCRIPTS, trio.testing.wait_all_tasks_blocked)
        return
    process = start_runner(tmp_path)
    os.mkfifo(tmp_path / "tasks/fifo")
    fifo = os.open(tmp_path / "tasks/fifo", os.O_RDONLY | os.O_NONBLOCK)

    def make():
        nowhere = Path("/nonexistent")
        return NativeDriver(socket=tmp_path / "runner.sock", work_dir=nowhere, run_dir=nowhere)

    async def up():
        with trio.fail_after(20):
            await trio.lowlevel.wait_readable(fifo)

    yield Kind(make, REAL, up)
    os.close(fifo)
    end_runner(process, tmp_path)


@pytest.fixture
async def driver(kind, nursery):
    made = kind.make()
    await nursery.start(made.run)
    return made


def launch(*argv, key="task.1", **more):
    more.setdefault("output_max", 1 << 20)
    return Launch(key=key, name="test", service=NativeService(argv=argv), env={}, **more)


def text(path):
    return Path(path).read_text()


async def end_of(driver, handle):
    with trio.fail_after(20):
        return await driver.wait(handle)


@pytest.mark.parametrize(
    ("word", "how"),
    [
        ("true", (0, None, "")),
        ("false", (1, None, "failed")),
        ("exit 3", (3, None, "failed")),
        ("segv", (None, 11, "failed")),
    ],
)
async def test_how_it_ended(kind, driver, word, how):
    handle = await driver.start(launch(*kind.words.get(word, (word,))))
    end = await end_of(driver, handle)
    assert (end.exit_code, end.signal, end.cause) == how
    assert bool(end.reason) is bool(end.cause)
    assert end.silent
    assert await end_of(driver, handle) == end


async def test_output(kind, driver):
    handle = await driver.start(launch(*kind.words["speak"]))
    assert not (await end_of(driver, handle)).silent
    assert (text(handle.stdout), text(handle.stderr)) == ("out\n", "err\n")


async def test_output_is_capped(kind, driver):
    handle = await driver.start(launch(*kind.words["flood"], output_max=1000))
    await end_of(driver, handle)
    assert text(handle.stdout).startswith("1\n2\n3")
    assert "[edgeorch: output limit of 1000 bytes" in text(handle.stdout)[1000:]


async def test_a_missing_program(driver):
    with pytest.raises(DriverError, match="no-such-program") as caught:
        await driver.start(launch("no-such-program"))
    assert caught.value.reason == "no_program"
    assert await driver.recover() == {}


async def test_start_twice(driver):
    first = await driver.start(launch("sleep", "1000"))
    assert await driver.start(launch("sleep", "1000")) == first
    assert await driver.recover() == {"task.1": first}
    await driver.stop(first, 5)


async def test_several_wait_and_all_are_told(driver):
    handle = await driver.start(launch("sleep", "1000"))
    ends = []

    async def one():
        ends.append(await end_of(driver, handle))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        await driver.stop(handle, 5)
    assert [end.signal for end in ends] == [15, 15]


async def test_stop_kills_the_deaf(kind, driver):
    handle = await driver.start(launch(*kind.words["deaf"]))
    await kind.up()
    await driver.stop(handle, 0.1)
    assert (await end_of(driver, handle)).signal == 9


async def test_stop_of_an_ended_service_changes_nothing(driver):
    handle = await driver.start(launch("true"))
    end = await end_of(driver, handle)
    await driver.stop(handle, 5)
    assert await end_of(driver, handle) == end


@pytest.mark.parametrize("word", ["true", "sleep"])
async def test_destroy_forgets(driver, word):
    handle = await driver.start(launch(*(word, "1000") if word == "sleep" else (word,)))
    await driver.destroy(handle)
    assert await driver.recover() == {}
    assert (await end_of(driver, handle)).cause == "node_lost"
    await driver.destroy(handle)


async def test_a_lease(driver):
    kept = await driver.start(launch("sleep", "1000", key="kept.1", lease_s=0.4))
    free = await driver.start(launch("sleep", "1000", key="free.1"))
    lost = await driver.start(launch("sleep", "1000", key="lost.1", lease_s=0.4))
    await driver.renew({"kept.1": 600, "free.1": 0.1, "gone.1": 600})
    assert (await end_of(driver, lost)).cause == "lease_expired"
    for handle in (kept, free):
        await driver.stop(handle, 5)
        assert (await end_of(driver, handle)).cause == "failed"


@pytest.fixture
def patient(monkeypatch):
    """However slow the machine is, turns come in time."""
    for module in (native, drivers):
        monkeypatch.setattr(module, "TURN_S", 60.0)


async def in_line(driver, nursery, key, most=1):
    """Ask for a service that has to wait; an event for its start."""
    begun = trio.Event()

    async def begin():
        await driver.start(launch("sleep", "1000", key=key, most=most))
        begun.set()

    nursery.start_soon(begin)
    await trio.testing.wait_all_tasks_blocked()
    return begun


async def its_turn(driver, begun, key):
    """The service that has waited."""
    with trio.fail_after(20):
        await begun.wait()
    return (await driver.recover())[key]


@pytest.mark.usefixtures("patient")
async def test_turns_come_in_order_as_services_end(driver, nursery):
    handle = await driver.start(launch("sleep", "1000", key="first.1", most=1))
    line = {key: await in_line(driver, nursery, key) for key in ("second.1", "third.1", "fourth.1")}
    for key, begun in line.items():
        assert (await driver.recover()).keys() == {handle.ref}
        await driver.stop(handle, 5)
        await driver.destroy(handle)
        handle = await its_turn(driver, begun, key)
    await driver.stop(handle, 5)


@pytest.mark.usefixtures("patient")
async def test_what_is_started_without_a_turn_counts_and_does_not_wait(driver, nursery):
    first = await driver.start(launch("sleep", "1000", key="first.1"))
    second = await driver.start(launch("sleep", "1000", key="second.1"))
    begun = await in_line(driver, nursery, "waits.1", most=2)
    third = await driver.start(launch("sleep", "1000", key="third.1"))
    assert (await driver.recover()).keys() == {"first.1", "second.1", "third.1"}
    for handle in (first, second):
        assert not begun.is_set()
        await driver.stop(handle, 5)
    for handle in (await its_turn(driver, begun, "waits.1"), third):
        await driver.stop(handle, 5)


async def test_who_has_no_turn_in_time_is_not_started_later(driver):
    first = await driver.start(launch("sleep", "1000", key="first.1"))
    with pytest.raises(NoTurnError):
        await driver.start(launch("true", key="waits.1", most=1))
    await driver.stop(first, 5)
    assert (await driver.recover()).keys() == {"first.1"}
    handle = await driver.start(launch("true", key="waits.1", most=1))
    assert (await end_of(driver, handle)).exit_code == 0


@pytest.mark.usefixtures("patient")
async def test_who_leaves_while_it_waits_is_not_started_and_holds_up_nobody(driver, nursery):
    first = await driver.start(launch("sleep", "1000", key="first.1"))
    async with trio.open_nursery() as leaving:
        await in_line(driver, leaving, "leaves.1")
        begun = await in_line(driver, nursery, "waits.1")
        leaving.cancel_scope.cancel()
    await driver.stop(first, 5)
    last = await its_turn(driver, begun, "waits.1")
    assert (await driver.recover()).keys() == {"first.1", "waits.1"}
    await driver.stop(last, 5)


@pytest.mark.usefixtures("patient")
async def test_one_that_cannot_be_started_leaves_its_turn_to_the_next(driver, nursery):
    first = await driver.start(launch("sleep", "1000", key="first.1"))
    refused = []

    async def fail():
        with pytest.raises(DriverError, match="no-such-program"):
            await driver.start(launch("no-such-program", key="fails.1", most=1))
        refused.append("fails.1")

    nursery.start_soon(fail)
    await trio.testing.wait_all_tasks_blocked()
    begun = await in_line(driver, nursery, "waits.1")
    await driver.stop(first, 5)
    last = await its_turn(driver, begun, "waits.1")
    assert refused
    await driver.stop(last, 5)


async def test_services_outlive_the_daemon(kind):
    async with trio.open_nursery() as nursery:
        first = kind.make()
        await nursery.start(first.run)
        ended = await first.start(launch(*kind.words["exit 3"], key="ended.1"))
        await end_of(first, ended)
        await first.start(launch("sleep", "1000", key="runs.1"))
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        second = kind.make()
        await nursery.start(second.run)
        handles = await second.recover()
        assert handles.keys() == {"ended.1", "runs.1"}
        assert handles["ended.1"] == ended
        end = await end_of(second, ended)
        assert (end.exit_code, end.silent) == (3, True)
        await second.stop(handles["runs.1"], 5)
        assert (await end_of(second, handles["runs.1"])).signal == 15
        nursery.cancel_scope.cancel()


async def test_available(driver):
    assert driver.available.version
    assert not driver.available.reason
