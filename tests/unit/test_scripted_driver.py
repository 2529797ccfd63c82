"""What only the scripted driver has: virtual time, containers, failures on demand."""

import pytest
import trio
import trio.testing

from edgeorch.errors import DriverError
from edgeorch.executor.driver import Available, Launch
from edgeorch.model import ContainerService, NativeService
from edgeorch.testing.drivers import ScriptedDriver, ScriptedHost


@pytest.fixture
async def host(tmp_path, nursery):
    made = ScriptedHost(tmp_path)
    await nursery.start(made.run)
    return made


def launch(*argv, key="task.1", **more):
    return Launch(key=key, name="x", service=NativeService(argv=argv), env={}, output_max=1000, **more)


async def test_sleep_takes_virtual_time(host, autojump_clock):
    driver = ScriptedDriver(host)
    handle = await driver.start(launch("sleep", "3600", ";", "exit", "4"))
    assert (await driver.wait(handle)).exit_code == 4
    assert trio.current_time() == pytest.approx(3600)


async def test_hang_ends_by_sigkill_after_the_grace(host, autojump_clock):
    driver = ScriptedDriver(host)
    handle = await driver.start(launch("hang"))
    await trio.testing.wait_all_tasks_blocked()
    await driver.stop(handle, 10)
    assert (await driver.wait(handle)).signal == 9
    assert trio.current_time() == pytest.approx(10)


async def test_a_lease_ends_it_on_time(host, autojump_clock):
    driver = ScriptedDriver(host)
    handle = await driver.start(launch("sleep", "100", lease_s=10))
    await trio.sleep(6)
    await driver.renew({"task.1": 10})
    assert (await driver.wait(handle)).cause == "lease_expired"
    assert trio.current_time() == pytest.approx(16)


async def test_a_container_runs_its_args_when_its_image_is_there(host):
    driver = ScriptedDriver(host, name="container", missing_images=frozenset({"gone"}))
    lines = []

    def order(image):
        return Launch(
            key="c.1",
            name="x",
            service=ContainerService(image=image, args=("exit", "2")),
            env={},
            output_max=9,
        )

    with pytest.raises(DriverError) as caught:
        await driver.prepare(order("gone"), lines.append)
    assert caught.value.reason == "image_unavailable"
    await driver.prepare(order("there"), lines.append)
    handle = await driver.start(order("there"))
    assert handle.driver == "container"
    assert (await driver.wait(handle)).exit_code == 2
    assert lines == ["pulling gone", "pulling there"]
    assert await ScriptedDriver(host, name="native").recover() == {}


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("fail-start", "no_permission"), "no_permission"),
        (("make-coffee",), "no_program"),
        (("sleep",), "invalid_service"),
    ],
)
async def test_failures_on_demand(host, argv, reason):
    with pytest.raises(DriverError) as caught:
        await ScriptedDriver(host).start(launch(*argv))
    assert caught.value.reason == reason


async def test_a_crash_loses_what_runs_and_keeps_what_ended(host):
    driver = ScriptedDriver(host)
    ended = await driver.start(launch("oom", key="ended.1"))
    running = await driver.start(launch("sleep", "9", key="runs.1"))
    await driver.wait(ended)
    host.crash()
    assert (await driver.wait(running)).cause == "node_lost"
    assert (await driver.wait(ended)).cause == "oom"


async def test_an_unavailable_driver_starts_nothing(host):
    driver = ScriptedDriver(host)
    changed = driver.changed
    driver.set_available(Available(reason="switched off"))
    assert changed.is_set()
    with pytest.raises(DriverError, match="switched off"):
        await driver.start(launch("true"))
    assert driver.started == ["task.1"]
    assert await driver.recover() == {}
