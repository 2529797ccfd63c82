"""A real node whose store hangs as if in an fsync: its thread is stopped by ptrace(2), all others go on."""

import contextlib
import ctypes
import http.client
import json
import os
import threading
from pathlib import Path

import pytest
from notify_socket import Systemd
from real_fleet import PATIENCE_S, RealFleet

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207
WALL = 0x40000000
"""waitpid(2) for threads too."""
SPEC = {"name": "test", "service": [{"driver": "native", "argv": ["true"]}]}


def ptrace(request, thread):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    if libc.ptrace(request, thread, 0, 0) != 0:
        return os.strerror(ctypes.get_errno())
    return ""


@contextlib.contextmanager
def hanging(process):
    """The thread that writes to the disk stops until the block is left, or until the node has ended."""
    tasks = Path("/proc", str(process.pid), "task")
    (thread,) = (
        int(task.name) for task in tasks.iterdir() if (task / "comm").read_text().strip() == "edgeorch-store"
    )
    if reason := ptrace(PTRACE_SEIZE, thread):
        pytest.skip(f"ptrace is not allowed here: {reason}")
    assert not ptrace(PTRACE_INTERRUPT, thread)
    os.waitpid(thread, WALL)
    try:
        yield
    finally:
        # A thread that has ended meanwhile is reaped: before that, its process cannot be waited for.
        if ptrace(PTRACE_DETACH, thread):
            os.waitpid(thread, WALL)


@pytest.fixture
def told(tmp_path):
    made = Systemd(tmp_path / "notify")
    with made.socket:
        yield made


@pytest.fixture
def kitchen(tmp_path):
    fleet = RealFleet(tmp_path, "kitchen")
    with contextlib.closing(fleet):
        yield fleet.nodes["kitchen"]


def test_a_disk_that_hangs_is_shown_and_waited_for(kitchen, told):
    kitchen.start(env={"NOTIFY_SOCKET": str(told.path), "WATCHDOG_USEC": "4000000"})
    told.until("STATUS=ready: ")
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(kitchen.request("POST", "/api/v1/tasks", SPEC)), daemon=True
    )
    with hanging(kitchen.process):
        asking.start()
        told.until("STATUS=DEGRADED store stalled ")
        status, body = kitchen.request("GET", "/readyz")
        assert (status, json.loads(body)["failing"]) == (503, ["store"])
        assert kitchen.request("GET", "/healthz")[0] == 200
        # Who comes now is told at once, and the loop still turns.
        status, body = kitchen.request("POST", "/api/v1/tasks", SPEC)
        assert (status, "store stalled" in json.loads(body)["detail"]) == (507, True)
        told.until("WATCHDOG=1", "STATUS=DEGRADED store stalled ")
        assert not answers
    asking.join(PATIENCE_S)
    ((status, body),) = answers
    assert status == 202
    assert kitchen.ended(json.loads(body))["state"] == "succeeded"
    told.until("STATUS=ready: ")
    assert kitchen.request("GET", "/readyz")[0] == 200


def test_a_disk_that_hangs_for_too_long_ends_the_node_and_loses_nothing(kitchen, told):
    limit = "[store]\nstall_limit_s=6\n"
    kitchen.start(limit, env={"NOTIFY_SOCKET": str(told.path)})
    accepted = kitchen.submit("true")
    assert kitchen.ended(accepted)["state"] == "succeeded"
    with contextlib.closing(kitchen.connection()) as connection:
        with hanging(kitchen.process):
            connection.request(
                "POST", "/api/v1/tasks", json.dumps(SPEC), {"Content-Type": "application/json"}
            )
            told.until("STATUS=ended: the store stalled for ")
        assert kitchen.process.wait(PATIENCE_S) == 1
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            connection.getresponse()
    assert "ending at once" in kitchen.log()
    kitchen.start(limit)
    assert kitchen.get(f"/api/v1/tasks/{accepted['id']}")["state"] == "succeeded"
