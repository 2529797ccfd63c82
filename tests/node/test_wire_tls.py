"""Real links between real identities on loopback, and everything else that may knock on the port."""

import random
import socket
import ssl
import time

import pytest
import structlog.testing
import trio
from trio.testing import wait_all_tasks_blocked

from edgeorch.config import Config, Loaded, Node
from edgeorch.errors import NodeUnreachableError, StartError
from edgeorch.identity import Authority, load_identity
from edgeorch.model import Caller, NodeInfo
from edgeorch.wire import Handlers
from edgeorch.wire.links import Links
from edgeorch.wire.listener import Listener
from edgeorch.wire.messages import Chunk, Done, FollowOutput, Goodbye, Hello, Renew, Renewed
from edgeorch.wire.transport import Tls

DAY = 86_400.0
HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    return Authority.create(tmp_path_factory.mktemp("ca"), "home")


@pytest.fixture
def make(tmp_path):
    """An identity of a new node of a fleet, as it is at ``wall``."""

    def make(authority, name, *, wall=time.time, **how):
        folder = tmp_path / name
        authority.issue(name, [HOST], replace=True, **how).write(folder)
        config = Config(node=Node(state_dir=str(folder)))
        return load_identity(Loaded(config=config, path=folder / "edgeorch.toml", origins={}), wall=wall)

    return make


def links_of(identity, handlers=None, ports=None):
    ports = ports if ports is not None else {}

    def hello():
        port = ports.get(identity.node_id, 1)
        return Hello(
            info=NodeInfo(id=identity.node_id, name=identity.name, fleet="home", version="1", wire_port=port)
        )

    links = Links(Tls(identity), hello, handlers or Handlers(), max_links=64, rng=random.Random())
    links.ports = ports
    return links


async def serve(nursery, links, node_id, **options):
    """Start links and a listener; returns the port."""
    await nursery.start(links.run)
    listener = Listener(links, port=0, listen=(HOST,), **options)
    port = await nursery.start(listener.run)
    links.ports[node_id] = port
    return listener, port


async def renew(_sender, request):
    return Renewed(keys=request.keys)


async def goodbye(_sender, _request):
    return Done()


async def output(sender, _request, outlet):
    for offset in range(100):
        await outlet.send(Chunk(stream="stdout", offset=offset, data=sender.name.encode()))


HANDLERS = Handlers({Renew: renew, Goodbye: goodbye}, {FollowOutput: output})


@pytest.fixture
async def server(fleet, make, nursery):
    identity = make(fleet, "server")
    links = links_of(identity, HANDLERS)
    listener, port = await serve(nursery, links, identity.node_id)
    return identity, links, listener, port


async def test_two_nodes_talk_both_ways_and_stream(fleet, make, nursery, server):
    theirs, their_links, _, port = server
    ours = make(fleet, "client")
    links = links_of(ours, HANDLERS, their_links.ports)
    await serve(nursery, links, ours.node_id)
    assert await links.dial_unknown(HOST, port) == theirs.node_id
    assert await links.call(theirs.node_id, Renew(keys=("a",))) == Renewed(keys=("a",))
    assert await their_links.call(ours.node_id, Renew(keys=("b",))) == Renewed(keys=("b",))
    request = FollowOutput(caller=Caller(token="t", role="read"), task_id="x")
    async with links.stream(theirs.node_id, request) as messages:
        got = [message async for message in messages]
    assert [message.offset for message in got] == list(range(100))
    assert {message.data for message in got} == {b"client"}


async def test_a_large_message_crosses_in_both_directions(fleet, make, nursery, server):
    theirs, _, _, port = server
    links = links_of(make(fleet, "client"))
    await nursery.start(links.run)
    await links.dial_unknown(HOST, port)
    big = Renew(keys=tuple(f"{number:0100}" for number in range(9000)))
    async with trio.open_nursery() as calls:
        for _ in range(5):
            calls.start_soon(links.call, theirs.node_id, big)
    assert (await links.call(theirs.node_id, big)).keys == big.keys


async def test_a_closing_process_is_known_at_once(fleet, make, nursery, server):
    _, their_links, _, port = server
    downs, up = [], trio.Event()
    down = trio.Event()
    their_links.on_up = lambda _: up.set()
    their_links.on_down = lambda node, why: (downs.append((node, why)), down.set())
    ours = make(fleet, "client")
    links = links_of(ours)
    async with trio.open_nursery() as inner:
        await inner.start(links.run)
        await links.dial_unknown(HOST, port)
        await up.wait()
        inner.cancel_scope.cancel()
    with trio.fail_after(2):
        await down.wait()
    assert downs == [(ours.node_id, "the peer closed the connection")]


async def test_another_ca_is_refused(make, nursery, server, tmp_path):
    port = server[3]
    stranger = Authority.create(tmp_path / "other-ca", "home")
    links = links_of(make(stranger, "stranger"))
    await nursery.start(links.run)
    with pytest.raises(NodeUnreachableError) as caught:
        await links.dial_unknown(HOST, port)
    assert caught.value.reason == "wrong_ca"


@pytest.mark.parametrize(("shift", "reason"), [(-400 * DAY, "expired"), (400 * DAY, "clock")])
async def test_a_certificate_out_of_its_time_is_refused(tmp_path, make, nursery, shift, reason):
    then = time.time() + shift
    fleet = Authority.create(tmp_path / "ca", "home", wall=lambda: time.time() - 500 * DAY)
    theirs = make(fleet, "server", days=1000)
    _, port = await serve(nursery, links_of(theirs, HANDLERS), theirs.node_id)
    later = Authority.open(tmp_path / "ca", wall=lambda: then)
    links = links_of(make(later, "late", wall=lambda: then, days=300))
    await nursery.start(links.run)
    with structlog.testing.capture_logs() as logs:
        with pytest.raises(NodeUnreachableError, match="refuses"):
            await links.dial_unknown(HOST, port)
        await wait_all_tasks_blocked()
    refusals = [entry for entry in logs if entry["event"] == "connection refused"]
    assert [entry["reason"] for entry in refusals] == [reason]


async def test_a_revoked_node_is_cut_and_told(fleet, make, nursery, server):
    theirs, their_links, _, port = server
    ours = make(fleet, "client")
    links = links_of(ours)
    down = trio.Event()
    links.on_down = lambda *_: down.set()
    await nursery.start(links.run)
    await links.dial_unknown(HOST, port)
    await links.call(theirs.node_id, Goodbye())
    fleet.revoke("client")
    assert theirs.take_crl(_crl(fleet))
    their_links.recheck()
    with trio.fail_after(2):
        await down.wait()
    with pytest.raises(NodeUnreachableError, match="revoked") as caught:
        await links.dial_unknown(HOST, port)
    assert caught.value.refused


def _crl(authority):
    return authority.crl_pem


def old_tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def no_certificate():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["edgeorch/1"])
    return context


async def hung_up(stream):
    """Whether the other end closed the connection without a word."""
    with trio.fail_after(2):
        try:
            return not await stream.receive_some()
        except trio.BrokenResourceError:
            return True


@pytest.mark.parametrize(("context", "reason"), [(old_tls, "old_tls"), (no_certificate, "no_identity")])
async def test_other_tls_is_refused_with_the_reason(server, context, reason):
    tcp = await trio.open_tcp_stream(HOST, server[3])
    stream = trio.SSLStream(tcp, context(), https_compatible=True)
    with structlog.testing.capture_logs() as logs:
        assert await hung_up(stream)
        await wait_all_tasks_blocked()
    await trio.aclose_forcefully(tcp)
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("connection refused", reason)]
    assert not [entry for entry in logs if "exc_info" in entry]


async def test_garbage_is_survived_and_logged_once_a_minute(fleet, make, nursery, server):
    theirs, _, listener, port = server
    rng = random.Random(7)
    packets = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00",
        b"\x16\x03\x01\xff\xff" + b"\x00" * 100,
        b"SSH-2.0-x\r\n",
        b"\xff" * 5000,
        *(rng.randbytes(rng.randrange(1, 2000)) for _ in range(40)),
    ]
    with structlog.testing.capture_logs() as logs:
        for packet in packets * 3:
            stream = await trio.open_tcp_stream(HOST, port)
            with trio.move_on_after(1):
                try:
                    await stream.send_all(packet)
                    await stream.send_eof()
                    while await stream.receive_some():
                        pass
                except (trio.BrokenResourceError, OSError):
                    pass
            await trio.aclose_forcefully(stream)
    await wait_all_tasks_blocked()
    assert sum(listener.statistics()["refused"].values()) == 3 * len(packets)
    assert not [entry for entry in logs if "exc_info" in entry]
    warned = [entry["reason"] for entry in logs if entry["log_level"] == "warning"]
    assert len(warned) == len(set(warned))
    assert "not_tls" in warned
    links = links_of(make(fleet, "client"))
    await nursery.start(links.run)
    assert await links.dial_unknown(HOST, port) == theirs.node_id


async def test_an_authenticated_peer_that_sends_garbage_loses_only_its_connection(fleet, make, server):
    _, _, listener, port = server
    identity = make(fleet, "client")
    for garbage in (b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0\0\3abc", b"\0\0\x10\0" + b"\x91" * 4096):
        tcp = await trio.open_tcp_stream(HOST, port)
        stream = trio.SSLStream(tcp, identity.client_context(), https_compatible=True)
        await stream.send_all(garbage)
        assert await hung_up(stream)
        await trio.aclose_forcefully(tcp)
    await wait_all_tasks_blocked()
    assert listener.statistics()["refused"] == {"no_hello": 4}


async def test_one_address_cannot_take_every_connection(fleet, make, nursery):
    identity = make(fleet, "server")
    listener, port = await serve(nursery, links_of(identity), identity.node_id, max_per_address=3)
    streams = [await trio.open_tcp_stream(HOST, port) for _ in range(4)]
    assert await hung_up(streams[3])
    assert listener.statistics()["connections"] == 3
    for stream in streams:
        await trio.aclose_forcefully(stream)


async def test_a_port_in_use_is_one_sentence(fleet, make, nursery):
    links = links_of(make(fleet, "server"))
    await nursery.start(links.run)
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"port {port} on {HOST} is in use \(stop the other"):
            await Listener(links, port=port, listen=(HOST,)).run()
    with pytest.raises(StartError, match=r"no address 203\.0\.113\.7"):
        await Listener(links, port=0, listen=("203.0.113.7",)).run()


async def test_the_wildcard_serves_loopback(fleet, make, nursery):
    identity = make(fleet, "server")
    links = links_of(identity)
    await nursery.start(links.run)
    port = await nursery.start(Listener(links, port=0).run)
    client = links_of(make(fleet, "client"))
    await nursery.start(client.run)
    assert await client.dial_unknown(HOST, port) == identity.node_id
