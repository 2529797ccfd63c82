"""``edgeorch demo`` as a person or a script meets it: real processes, and nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import trio

from edgeorch.client import AsyncClient
from edgeorch.client.endpoint import Endpoint

LIMIT_S = 120
"""Far above what it takes; other work may share the machine."""


def processes_with(folder):
    """Processes that name the folder, work in it or have it in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [process.cwd(), *process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(folder) in word for word in words):
            found.append(process)
    return found


@pytest.fixture
def folder():
    """Where the demo keeps its files; sockets need a short path."""
    path = Path(tempfile.mkdtemp(prefix="ed-", dir="/tmp"))
    yield path
    for process in processes_with(path):
        process.kill()
    shutil.rmtree(path)


@pytest.fixture
async def demo(folder):
    """Start ``edgeorch demo`` with these words."""
    started = []

    async def start(*words, **more):
        env = {name: value for name, value in os.environ.items() if not name.startswith("EDGEORCH_")}
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "edgeorch", "demo", *words],
            env=env | {"TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **more,
        )
        started.append(process)
        return process

    with trio.fail_after(LIMIT_S):
        yield start
        for process in started:
            await process.wait()


async def read_all(process):
    """(stdout, stderr) to their ends."""
    parts = {}

    async def read(name, stream):
        parts[name] = b"".join([piece async for piece in stream]).decode()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, "out", process.stdout)
        nursery.start_soon(read, "err", process.stderr)
    return parts["out"], parts["err"]


async def read_line(process):
    data = b""
    while not data.endswith(b"\n"):
        piece = await process.stdout.receive_some()
        assert piece, (await read_all(process))[1]
        data += piece
    return data


def assert_nothing_left(folder):
    assert list(folder.iterdir()) == []
    assert processes_with(folder) == []


def told(out, err, code):
    assert code == 0, out + err
    for part in (
        'curl -X POST "127.0.0.1:',
        '"Message": "ERROR_NONE"',
        "(chosen)",
        '"Status": "Started"',
        '"Status": "Finished"',
        "\tsucceeded\t",
    ):
        assert part in out


async def test_it_tells_the_whole_story_and_ends_by_itself(demo, folder):
    process = await demo("--native")
    out, err = await read_all(process)
    told(out, err, await process.wait())
    assert "hello 3 from node" in out
    assert_nothing_left(folder)


@pytest.mark.docker
async def test_it_runs_a_container_where_one_can_run(demo, folder):
    from docker_images import busybox_image, docker

    busybox_image()
    process = await demo("--container")
    out, err = await read_all(process)
    told(out, err, await process.wait())
    assert "/var/run:/var/run:rw" in out
    assert "root on this machine" in out
    task_id = json.loads(next(line for line in out.splitlines() if "ERROR_NONE" in line))["TaskId"]
    assert docker("ps", "-aq", "--filter", f"label=edgeorch.task={task_id}").stdout == ""
    assert_nothing_left(folder)


async def test_for_scripts_one_line_then_a_fleet_until_sigterm(demo, folder):
    process = await demo("--json")
    line = json.loads(await read_line(process))
    assert list(line) == ["nodes", "token", "ca", "dir"]
    assert [list(node) for node in line["nodes"]] == [["name", "id", "url", "pid", "config"]] * 3
    ids = {node["id"] for node in line["nodes"]}
    for node in line["nodes"]:
        assert psutil.pid_exists(node["pid"])
        assert Path(node["config"]).is_relative_to(line["dir"])
        async with AsyncClient(endpoint=Endpoint(url=node["url"], token=line["token"])) as client:
            assert {seen.id for seen in await client.nodes() if seen.state == "alive"} == ids
        secure = node["url"].replace("http:", "https:")
        async with AsyncClient(secure, token=line["token"], ca=line["ca"]) as client:
            assert (await client.node()).id == node["id"]
        # Callers on loopback need no token.
        async with AsyncClient(endpoint=Endpoint(url=node["url"])) as client:
            await client.nodes()
    # A service that would outlive its node, and a tree of processes with it.
    script = "setsid sleep 1000 & exec sleep 1000"
    async with AsyncClient(endpoint=Endpoint(url=line["nodes"][0]["url"], token=line["token"])) as client:
        spec = {"name": "stay", "service": [{"driver": "native", "argv": ["sh", "-c", script]}]}
        task = await client.submit(spec)
        async with client.events(task.id) as events:
            async for event in events:
                if event.data.get("state") == "running":
                    break
    process.terminate()
    out, err = await read_all(process)
    assert (await process.wait(), out) == (0, ""), err
    assert "Traceback" not in err
    assert_nothing_left(folder)


async def test_ctrl_c_while_it_starts(demo, folder):
    process = await demo("--keep")
    while not any(folder.glob("*/attic/node.log")):  # noqa: ASYNC110  another process's file has no event
        await trio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = await read_all(process)
    assert await process.wait() == 130
    assert "Traceback" not in err
    assert_nothing_left(folder)


async def test_an_impatient_second_ctrl_c(demo, folder):
    process = await demo("--json")
    await read_line(process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    await read_all(process)
    assert await process.wait() == 0
    assert_nothing_left(folder)


async def test_a_node_that_dies_ends_it_with_the_nodes_last_words(demo, folder):
    process = await demo("--json")
    line = json.loads(await read_line(process))
    os.kill(line["nodes"][1]["pid"], signal.SIGKILL)
    _, err = await read_all(process)
    assert await process.wait() == 1
    assert err.startswith("\nThe fleet stays up")
    assert "edgeorch: node garage ended with code -9:\n  2" in err
    assert "Traceback" not in err
    assert_nothing_left(folder)
