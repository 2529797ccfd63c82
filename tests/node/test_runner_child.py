"""The runner that a node starts itself."""

import socket

import pytest

from edgeorch.executor.runner_child import start_runner


async def test_the_nodes_runner_does_not_tell_systemd_that_the_node_is_ready(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        runner = await start_runner(tmp_path / "runner.sock", work)
        await runner.stop()
        runner.close()
        # It has ended, so whatever it had to say has been said.
        with pytest.raises(BlockingIOError):
            told.recv(100)
