"""The container driver with a real Docker Engine."""

import os
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest
import trio
from docker_images import BUSYBOX, busybox_image, docker, inspect, remove

from edgeorch.errors import DriverError
from edgeorch.executor.container import ContainerDriver
from edgeorch.executor.container_engine import Engine
from edgeorch.executor.container_watch import Watch
from edgeorch.executor.driver import Launch
from edgeorch.model import ContainerService, NativeService
from edgeorch.runner.capped import read_tail

pytestmark = pytest.mark.docker

NODE = "testnode00"
CGROUP_V2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()


@pytest.fixture(scope="module", autouse=True)
def image():
    yield busybox_image()
    left = docker("ps", "-aq", "--filter", f"label=edgeorch.node={NODE}").stdout.split()
    remove(*left)
    assert left == [], "a test has left containers behind"


@pytest.fixture
def store(request):
    return f"{os.getpid()}-{abs(hash(request.node.name))}"


@pytest.fixture
def make(tmp_path, store):
    def make_driver(**options):
        return ContainerDriver("", NODE, store, tmp_path, **options)

    return make_driver


@pytest.fixture
async def driver(make, nursery):
    driver = make()
    await nursery.start(driver.run)
    return driver


@pytest.fixture
def launch(store):
    numbers = iter(range(1, 100))

    def make_launch(*args, options=("--network", "none"), image=BUSYBOX, **fields):
        service = ContainerService(image=image, options=options, args=args)
        fields = {"output_max": 1 << 20, "env": {}, **fields}
        return Launch(key=f"{store}.{next(numbers)}", name="test", service=service, **fields)

    return make_launch


def stdout(handle):
    return Path(handle.stdout).read_bytes()


def stderr(handle):
    return Path(handle.stderr).read_bytes()


async def in_thread(*args):
    return await trio.to_thread.run_sync(lambda: docker(*args))


async def run_to_end(driver, launch):
    await driver.prepare(launch, lambda line: None)
    handle = await driver.start(launch)
    with trio.fail_after(20):
        end = await driver.wait(handle)
    await driver.destroy(handle)
    return handle, end


async def output_of(handle, text):
    """Return when the text has arrived in the file of stdout."""
    command = ["tail", "-c", "+1", "-F", handle.stdout]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "check": False}
    seen = b""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            process = await nursery.start(partial(trio.run_process, command, **options))
            async for chunk in process.stdout:
                seen += chunk
                if text in seen:
                    break
            process.terminate()


async def test_output_exit_code_and_environment(driver, launch):
    env = {"EDGEORCH_TASK_ID": "t1", "A": "driver"}
    one = launch(
        "sh", "-c", "echo out $A $EDGEORCH_TASK_ID; echo err >&2; exit 3", options=("-e", "A=user"), env=env
    )
    handle, end = await run_to_end(driver, one)
    assert (end.exit_code, end.cause, end.signal) == (3, "failed", None)
    assert stdout(handle) == b"out driver t1\n"
    assert stderr(handle) == b"err\n"
    assert docker("inspect", handle.ref, check=False).returncode != 0


async def test_success(driver, launch):
    _, end = await run_to_end(driver, launch("true"))
    assert (end.exit_code, end.cause, end.reason) == (0, "", "")
    assert driver.available.version
    assert driver.statistics()["containers"] == 0


async def test_the_container_is_labelled_and_limited(driver, launch, store):
    one = launch(
        "sleep",
        "100",
        options=("--rm", "-l", "mine=1", "-l", "edgeorch.node=forged"),
        cpus=0.5,
        memory=64 << 20,
    )
    handle = await driver.start(one)
    [found] = inspect(handle.ref)
    assert found["Config"]["Labels"] == {
        "mine": "1",
        "edgeorch.task": store,
        "edgeorch.attempt": one.key,
        "edgeorch.node": NODE,
        "edgeorch.store": store,
        "edgeorch.output_max": str(1 << 20),
    }
    assert found["HostConfig"]["NanoCpus"] == 500_000_000
    assert found["HostConfig"]["Memory"] == 64 << 20
    assert not found["HostConfig"]["AutoRemove"]
    await driver.destroy(handle)


@pytest.mark.parametrize("options", [("--cpus", "1", "-m", "32m"), ("--cpu-quota", "50000", "-m", "32m")])
async def test_options_win_over_resources(driver, launch, options):
    handle = await driver.start(launch("true", options=options, cpus=0.5, memory=64 << 20))
    [found] = inspect(handle.ref)
    assert found["HostConfig"]["NanoCpus"] in (0, 1_000_000_000)
    assert found["HostConfig"]["Memory"] == 32 << 20
    await driver.destroy(handle)


async def test_binary_output_in_both_streams(driver, launch):
    handle, end = await run_to_end(
        driver, launch("sh", "-c", "head -c 300000 /dev/zero; printf '\\377\\n' >&2")
    )
    assert end.exit_code == 0
    assert stdout(handle) == bytes(300_000)
    assert stderr(handle) == b"\xff\n"


async def test_output_is_capped(driver, launch):
    handle, _ = await run_to_end(
        driver, launch("sh", "-c", "yes | head -c 100000; echo end", output_max=1000)
    )
    kept = stdout(handle)
    assert kept.startswith(b"y\n" * 500 + b"\n[edgeorch: output limit")
    dropped, end = read_tail(Path(handle.stdout))
    assert dropped == 100_000 + len("end\n") - 1000
    assert end.endswith(b"y\nend\n")


async def test_a_terminal_has_one_stream(driver, launch):
    handle, _ = await run_to_end(driver, launch("sh", "-c", "echo a; echo b >&2", options=("-t",)))
    assert stdout(handle) == b"a\r\nb\r\n"
    assert stderr(handle) == b""


async def test_an_interactive_container_reads_the_end_of_its_input(driver, launch):
    handle, end = await run_to_end(driver, launch("sh", "-c", "cat; echo done", options=("-i",)))
    assert end.exit_code == 0
    assert stdout(handle) == b"done\n"


async def test_any_log_driver(driver, launch):
    handle, _ = await run_to_end(driver, launch("echo", "hi", options=("--log-driver", "none")))
    assert stdout(handle) == b"hi\n"


async def test_out_of_memory(driver, launch):
    eat = "a=x; while true; do a=$a$a; done"
    _, end = await run_to_end(driver, launch("sh", "-c", eat, options=("-m", "8m", "--memory-swap", "8m")))
    # An Engine on cgroup v1 may lose a race with the end of the container, and does not tell then.
    assert end.cause == "oom" or (end.cause == "failed" and not CGROUP_V2)
    assert "out of memory" in end.reason


async def test_restart_policy_ends_with_the_last_exit(driver, launch):
    options = ("--restart", "on-failure:2", "--network", "none")
    handle, end = await run_to_end(driver, launch("sh", "-c", "echo run; exit 7", options=options))
    assert (end.exit_code, end.cause) == (7, "failed")
    assert stdout(handle) == b"run\n" * 3


async def test_stop_lets_it_end_by_itself(driver, launch):
    script = "trap 'echo bye; exit 5' TERM; echo up; while true; do sleep 0.05; done"
    handle = await driver.start(launch("sh", "-c", script))
    await output_of(handle, b"up")
    await driver.stop(handle, 10)
    end = await driver.wait(handle)
    assert end.exit_code == 5
    assert stdout(handle) == b"up\nbye\n"
    await driver.stop(handle, 10)
    await driver.destroy(handle)


async def test_stop_uses_the_stop_signal(driver, launch):
    script = "trap 'exit 9' USR1; echo up; while true; do sleep 0.05; done"
    handle = await driver.start(launch("sh", "-c", script, options=("--stop-signal", "USR1")))
    await output_of(handle, b"up")
    await driver.stop(handle, 10)
    assert (await driver.wait(handle)).exit_code == 9
    await driver.destroy(handle)


async def test_stop_kills_what_does_not_end(driver, launch):
    handle = await driver.start(launch("sh", "-c", "trap '' TERM; echo up; while true; do sleep 0.05; done"))
    await output_of(handle, b"up")
    await driver.stop(handle, 0.1)
    end = await driver.wait(handle)
    assert (end.exit_code, end.cause) == (137, "failed")
    assert "SIGKILL" in end.reason
    await driver.destroy(handle)


async def test_stop_ends_a_container_that_restarts(driver, launch):
    handle = await driver.start(launch("sh", "-c", "echo up; exit 1", options=("--restart", "always")))
    await output_of(handle, b"up")
    await driver.stop(handle, 0.1)
    with trio.fail_after(10):
        assert (await driver.wait(handle)).cause == "failed"
    await driver.destroy(handle)


async def test_start_twice_gives_one_container(driver, make, nursery, launch):
    one = launch("sleep", "100")
    handle = await driver.start(one)
    assert await driver.start(one) == handle
    after_restart = make()
    await nursery.start(after_restart.run)
    assert await after_restart.start(one) == handle
    await driver.destroy(handle)


async def test_a_foreign_container_of_the_name_is_not_taken(driver, launch):
    one = launch("true")
    await in_thread("create", "--name", f"edgeorch-{one.key}", BUSYBOX, "true")
    with pytest.raises(DriverError, match="already in use"):
        await driver.start(one)
    await in_thread("rm", f"edgeorch-{one.key}")


async def test_adoption_goes_on_without_repeating_output(make, launch):
    before, after = make(), make()
    script = "echo 1; while [ ! -e /go ]; do sleep 0.02; done; echo 2; echo e >&2; exit 4"
    async with trio.open_nursery() as nursery:
        await nursery.start(before.run)
        handle = await before.start(launch("sh", "-c", script))
        await output_of(handle, b"1\n")
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        await nursery.start(after.run)
        found = await after.recover()
        assert list(found.values()) == [handle]
        await in_thread("exec", handle.ref, "sh", "-c", "echo > /go")
        with trio.fail_after(10):
            end = await after.wait(found.popitem()[1])
        assert (end.exit_code, stdout(handle), stderr(handle)) == (4, b"1\n2\n", b"e\n")
        await after.destroy(handle)
        nursery.cancel_scope.cancel()


async def test_an_end_while_the_daemon_was_away_is_found(make, launch):
    async with trio.open_nursery() as nursery:
        before = make()
        await nursery.start(before.run)
        handle = await before.start(
            launch("sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; echo late; exit 6")
        )
        nursery.cancel_scope.cancel()
    await in_thread("exec", handle.ref, "sh", "-c", "echo > /go")
    await in_thread("wait", handle.ref)
    async with trio.open_nursery() as nursery:
        after = make()
        await nursery.start(after.run)
        with trio.fail_after(10):
            assert (await after.wait(handle)).exit_code == 6
        assert stdout(handle) == b"late\n"
        await after.destroy(handle)
        nursery.cancel_scope.cancel()


async def test_only_containers_of_this_node_and_store_are_taken_up(driver, launch, tmp_path, store):
    handle = await driver.start(launch("sleep", "100"))
    for node, other_store in ((NODE, "another"), ("othernode0", store)):
        async with trio.open_nursery() as nursery:
            other = ContainerDriver("", node, other_store, tmp_path)
            await nursery.start(other.run)
            assert await other.recover() == {}
            nursery.cancel_scope.cancel()
    await driver.destroy(handle)


async def test_a_container_that_was_never_started_is_lost(driver, launch, store):
    one = launch("true")
    labels = (f"edgeorch.attempt={one.key}", f"edgeorch.node={NODE}", f"edgeorch.store={store}")
    words = [word for label in labels for word in ("--label", label)]
    await in_thread("create", "--name", f"edgeorch-{one.key}", *words, BUSYBOX, "true")
    handle = (await driver.recover())[one.key]
    with trio.fail_after(10):
        end = await driver.wait(handle)
    assert end.cause == "node_lost"
    await driver.destroy(handle)


async def test_removed_behind_our_back(driver, launch):
    handle = await driver.start(launch("sleep", "100"))
    await in_thread("rm", "-f", handle.ref)
    with trio.fail_after(10):
        end = await driver.wait(handle)
    assert end.cause in ("node_lost", "failed")
    assert end.reason
    await driver.stop(handle, 1)
    await driver.destroy(handle)


async def test_unknown_handle(driver, launch):
    handle = await driver.start(launch("true"))
    await driver.wait(handle)
    await driver.destroy(handle)
    with trio.fail_after(10):
        assert (await driver.wait(handle)).cause == "node_lost"


async def test_anonymous_volumes_go_with_the_container(driver, launch):
    handle = await driver.start(launch("true", options=("-v", "/data", "--network", "none")))
    volume = inspect(handle.ref)[0]["Mounts"][0]["Name"]
    await driver.wait(handle)
    await driver.destroy(handle)
    assert docker("volume", "inspect", volume, check=False).returncode != 0


@pytest.mark.parametrize(
    ("args", "options", "expected"),
    [
        (["/no/such/program"], (), ("no_program", "no such file")),
        (["no-such-program"], (), ("no_program", "not found")),
        (["/etc"], (), ("no_permission", "permission denied")),
        (["true"], ("--memory", "1m"), ("invalid_service", "memory")),
        (["true"], ("--unknown",), ("invalid_service", "--unknown is not a known option")),
        (["true"], ("-d",), ("invalid_service", "--detach")),
        (["true"], ("--env-file", "/etc/hostname"), ("invalid_service", "policy.option_files is off")),
        (["true"], ("--device", "/dev/none-such"), ("failed", "none-such")),
        (["true"], ("--network", "none-such"), ("failed", "none-such")),
        (["true"], ("-v", "/tmp:relative"), ("invalid_service", "absolute")),
    ],
)
async def test_a_bad_service_has_a_reason(driver, launch, args, options, expected):
    with pytest.raises(DriverError) as info:
        await driver.start(launch(*args, options=options))
    reason, sentence = expected
    assert sentence in str(info.value)
    assert info.value.reason == reason


async def test_a_port_in_use(driver, launch):
    first = await driver.start(launch("sleep", "100", options=("-p", "127.0.0.1:39871:80")))
    with pytest.raises(DriverError, match="39871") as info:
        await driver.start(launch("true", options=("-p", "127.0.0.1:39871:80")))
    assert info.value.reason == "failed"
    await driver.destroy(first)


async def test_option_files_are_read_where_allowed(make, nursery, launch, tmp_path):
    driver = make(option_files=lambda: True)
    await nursery.start(driver.run)
    (tmp_path / "env").write_text("FROM_FILE=yes\n")
    handle, _ = await run_to_end(
        driver, launch("sh", "-c", "echo $FROM_FILE", options=("--env-file", str(tmp_path / "env")))
    )
    assert stdout(handle) == b"yes\n"
    for path in ("/dev/zero", str(tmp_path / "absent"), str(tmp_path)):
        with pytest.raises(DriverError, match=r"--env-file|not a file"):
            await driver.start(launch("true", options=("--env-file", path)))


async def test_prepare_checks_the_options_before_it_pulls(driver, launch):
    with pytest.raises(DriverError, match="--nosuch") as info:
        await driver.prepare(launch(image="127.0.0.1:1/none", options=("--nosuch",)), print)
    assert info.value.reason == "invalid_service"
    with pytest.raises(DriverError, match="no container service"):
        await driver.prepare(
            Launch(key="k.1", name="n", service=NativeService(argv=("x",)), env={}, output_max=1), print
        )


async def test_an_image_that_cannot_be_pulled(driver, launch):
    lines = []
    with pytest.raises(DriverError, match=r"127\.0\.0\.1:1/none") as info:
        await driver.prepare(launch(image="127.0.0.1:1/none"), lines.append)
    assert info.value.reason == "image_unavailable"
    assert lines == ["pulling 127.0.0.1:1/none"]
    with pytest.raises(DriverError) as info:
        await driver.start(launch(image="127.0.0.1:1/none"))
    assert info.value.reason == "image_unavailable"


async def test_a_bad_image_name(driver, launch):
    with pytest.raises(DriverError, match="UPPER"):
        await driver.prepare(launch(image="UPPER"), print)


async def test_cancelling_start_leaves_nothing(driver, launch, store, monkeypatch):
    scope, removed = trio.CancelScope(), trio.Event()
    token = trio.lowlevel.current_trio_token()
    create, remove_container = Engine.create, Engine.remove

    def create_and_cancel(self, name, body):
        ref = create(self, name, body)
        token.run_sync_soon(scope.cancel)
        return ref

    def remove_and_tell(self, ref):
        remove_container(self, ref)
        token.run_sync_soon(removed.set)

    monkeypatch.setattr(Engine, "create", create_and_cancel)
    monkeypatch.setattr(Engine, "remove", remove_and_tell)
    with scope:
        await driver.start(launch("sleep", "100"))
    assert scope.cancelled_caught
    with trio.fail_after(10):
        await removed.wait()
    assert docker("ps", "-aq", "--filter", f"label=edgeorch.store={store}").stdout == ""


async def test_an_end_before_start_returns_is_not_missed(make, nursery, launch, monkeypatch):
    ended = threading.Event()
    start, on_event = Engine.start, Watch.on_event

    def start_and_wait_for_the_end(self, ref):
        start(self, ref)
        assert ended.wait(10)

    def on_event_and_tell(self, event):
        on_event(self, event)
        ended.set()

    monkeypatch.setattr(Engine, "start", start_and_wait_for_the_end)
    monkeypatch.setattr(Watch, "on_event", on_event_and_tell)
    driver = make()
    await nursery.start(driver.run)
    handle, end = await run_to_end(driver, launch("sh", "-c", "echo quick; exit 3"))
    assert (end.exit_code, end.cause) == (3, "failed")
    assert stdout(handle) == b"quick\n"


async def test_a_kill_while_the_daemon_was_away_is_a_loss(make, launch):
    async with trio.open_nursery() as nursery:
        before = make()
        await nursery.start(before.run)
        handle = await before.start(launch("sleep", "100"))
        nursery.cancel_scope.cancel()
    await in_thread("kill", handle.ref)
    async with trio.open_nursery() as nursery:
        after = make()
        await nursery.start(after.run)
        with trio.fail_after(10):
            end = await after.wait(handle)
        assert (end.exit_code, end.cause) == (137, "node_lost")
        await after.destroy(handle)
        nursery.cancel_scope.cancel()


async def test_an_interactive_container_may_end_at_once(driver, launch):
    _, end = await run_to_end(driver, launch("true", options=("-i", "--network", "none")))
    assert end.exit_code == 0


async def test_many_at_once(driver, launch):
    launches = [launch("sh", "-c", f"echo {number}") for number in range(12)]
    ends = {}

    async def one(launch):
        ends[launch.key] = await run_to_end(driver, launch)

    async with trio.open_nursery() as nursery:
        for each in launches:
            nursery.start_soon(one, each)
    assert [stdout(ends[each.key][0]) for each in launches] == [b"%d\n" % number for number in range(12)]
