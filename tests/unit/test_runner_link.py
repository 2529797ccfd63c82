"""The daemon's end of the runner's socket: what is sent when."""

import socket
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from edgeorch.executor.runner_link import RunnerLink
from edgeorch.runner import protocol

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def linked():
    """A link and the requests that arrive at the other end, each time as many as came at once."""
    near, far = socket.socketpair()
    near.setblocking(False)
    link = RunnerLink(near, lambda _exited: None)
    inbox = protocol.requests()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(far))

    async def came():
        return [type(one).__name__ for one in inbox.feed(await stream.receive_some())]

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        yield link, came, nursery.cancel_scope
        nursery.cancel_scope.cancel()


def forget(key):
    return protocol.Forget(id=protocol.UNASKED, key=key)


async def test_what_may_wait_goes_before_what_is_sent_next():
    async with linked() as (link, came, _):
        link.post_later(forget("a.1"))
        link.post_later(forget("a.2"))
        link.post(protocol.Renew(leases={}))
        assert await came() == ["Forget", "Forget", "Renew"]


async def test_what_may_wait_does_not_wait_for_ever():
    async with linked() as (link, came, _):
        for _ in range(2):
            link.post_later(forget("a.1"))
            assert await came() == ["Forget"]


async def test_what_waits_is_sent_when_the_link_is_closed():
    async with linked() as (link, came, scope):
        await trio.testing.wait_all_tasks_blocked()
        link.post_later(forget("a.1"))
        scope.cancel()
        with trio.CancelScope(shield=True):
            assert await came() == ["Forget"]
