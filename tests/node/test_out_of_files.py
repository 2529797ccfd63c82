"""A node that may open no more files lives on, loses nothing, and is well again when there are some."""

import contextlib
import socket

import pytest
from real_fleet import RealFleet, eventually

FILES = 90


@pytest.fixture
def node(tmp_path):
    fleet = RealFleet(tmp_path, "one")
    node = fleet.nodes["one"]
    plain = node.command()
    # The runner is its child and has the same limit.
    node.command = lambda: ["prlimit", f"--nofile={FILES}:{FILES}", *plain]
    try:
        yield node.start()
    finally:
        fleet.close()


def held(node, stack, port):
    """As many connections as the node takes, and some that wait for it."""
    taken = []
    for _ in range(FILES + 20):
        sock = stack.enter_context(socket.socket())
        sock.settimeout(5)
        with contextlib.suppress(OSError):
            sock.connect((node.host, port))
            taken.append(sock)
    return taken


@pytest.mark.parametrize("door", ["api", "wire"])
def test_no_descriptor_is_left(node, door):
    before = node.submit("sleep", "3")
    port = node.fleet.api if door == "api" else node.fleet.wire
    with contextlib.ExitStack() as stack:
        assert len(held(node, stack, port)) > FILES - 30
        said = "Too many open files"
        eventually(lambda: node.process.poll() is not None or said in node.log(), "the node meets its limit")
        assert node.process.poll() is None, node.log()
    assert node.ended(before)["state"] == "succeeded"
    eventually(lambda: node.request("GET", "/readyz")[0] == 200, "ready again")
    assert node.ended(node.submit("true"))["state"] == "succeeded"
    assert "Traceback" not in node.log()
    assert node.log().count("Too many open files") < 3  # not ten times a second
