"""The stream under TLS between nodes keeps to what Trio asks of every stream."""

import socket

import pytest
import trio
import trio.testing

from edgeorch.wire.socket_stream import WaitingStream


async def pair():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = await trio.testing.open_stream_to_socket_listener(listener)
        return WaitingStream(near), WaitingStream(await listener.accept())


async def test_it_is_a_stream_as_any_other():
    await trio.testing.check_two_way_stream(pair, None)


async def test_a_connection_that_is_reset_is_broken():
    near, far = await pair()
    far._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0, 0, 0, 0, 0)))
    await far.aclose()
    async with near:
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()
