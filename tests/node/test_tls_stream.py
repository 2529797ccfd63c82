"""The TLS stream between nodes keeps to what Trio asks of every stream."""

import socket
import ssl

import pytest
import trio
import trio.testing
import trustme

from edgeorch.wire.tls_stream import TlsStream

CA = trustme.CA()


def contexts():
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.check_hostname = False
    CA.configure_trust(client)
    CA.issue_cert("node").configure_cert(server)
    for context in (client, server):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    return client, server


async def pair():
    client, server = contexts()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = await trio.testing.open_stream_to_socket_listener(listener)
        ends = (
            TlsStream(near, client, server_side=False),
            TlsStream(await listener.accept(), server, server_side=True),
        )
    async with trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(end.do_handshake)
    return ends


async def clogged_pair():
    near, far = await pair()
    for end in (near, far):
        assert not end.send_now(bytes(1 << 24))
    return near, far


async def test_it_is_a_stream_as_any_other():
    await trio.testing.check_two_way_stream(pair, clogged_pair)


async def test_what_the_socket_has_no_room_for_is_sent_later_and_in_order():
    near, far = await pair()
    sent = bytearray()
    async with near, far, trio.open_nursery() as nursery:
        for number in range(200):
            piece = bytes([number]) * 100_000
            sent += piece
            near.send_now(piece)
        nursery.start_soon(near.drain)
        came = bytearray()
        while len(came) < len(sent):
            came += await far.receive_some()
    assert came == sent


async def test_an_end_without_a_word_is_an_end():
    near, far = await pair()
    await far.send_all(b"last")
    await far.aclose()
    async with near:
        assert await near.receive_some() == b"last"
        assert await near.receive_some() == b""
        assert await near.receive_some() == b""


async def test_a_connection_that_is_reset_is_broken():
    near, far = await pair()
    far._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0, 0, 0, 0, 0)))
    await far.aclose()
    async with near:
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                near.send_now(b"x")


async def test_what_is_no_tls_breaks_it():
    near, far = await pair()
    await far._tcp.send_all(b"this is no record of TLS")
    async with near, far:
        with pytest.raises(trio.BrokenResourceError) as broken:
            await near.receive_some()
    assert isinstance(broken.value.__cause__, ssl.SSLError)


async def test_a_server_that_is_left_at_once_still_hears_what_was_said():
    near, far = await pair()
    await near.send_all(b"bye")
    await near.aclose()
    async with far:
        assert await far.receive_some() == b"bye"
        assert await far.receive_some() == b""
