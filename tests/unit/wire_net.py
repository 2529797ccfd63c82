"""Real links over streams in memory, for tests on MockClock."""

import random
from contextlib import asynccontextmanager

import trio
import trio.testing

from edgeorch.errors import IdentityError
from edgeorch.identity import PeerIdentity
from edgeorch.identity.peer import check_dates
from edgeorch.model import NodeInfo
from edgeorch.testing.wire import Network
from edgeorch.wire import Handlers
from edgeorch.wire.links import Links
from edgeorch.wire.messages import Hello
from edgeorch.wire.tls_stream import PromptStream
from edgeorch.wire.transport import DialError, Secured

NOW, ENDS = 1e9, 4e9
A, B, C = "aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc"


def hello(node_id, **changes):
    return Hello(info=NodeInfo(id=node_id, name=f"name-{node_id[0]}", fleet="f", version="1"), **changes)


def identity(node_id):
    return PeerIdentity(
        node_id=node_id, name=f"name-{node_id[0]}", fleet="f", serial=1, not_before=0.0, not_after=ENDS
    )


class MemoryNet:
    """Hosts are node ids. ``down`` hosts refuse, ``silent`` hosts never answer, ``closing`` hosts hang up."""

    def __init__(self, nursery):
        self.nursery = nursery
        self.links = {}
        self.streams = []
        self.down, self.silent, self.closing, self.revoked = set(), set(), set(), set()
        self.replaced = set()
        """Nodes whose certificate of before is not accepted any more; a new connection shows another."""
        self.clocks = {}
        self.latency = 0.0
        self.dialled = []
        self.refusals = []

    def transport(self, node_id):
        return _Transport(self, node_id)

    def add(self, node_id, handlers=None, *, max_links=64, says=None, clock=trio.current_time):
        links = Links(
            self.transport(node_id),
            says or (lambda: hello(node_id)),
            handlers or Handlers(),
            max_links=max_links,
            rng=random.Random(1),
            clock=clock,
        )
        links.events = []
        links.on_hello = lambda sender, _hello, who: links.events.append(
            ("hello", sender.node_id, who.node_id)
        )
        links.on_up = lambda node: links.events.append(("up", node))
        links.on_down = lambda node, why: links.events.append(("down", node, why))
        links.on_barred = lambda node, why: links.events.append(("barred", node, why))
        self.links[node_id] = links
        return links

    def certificate(self, node_id):
        return node_id.encode() if node_id in self.replaced else f"{node_id} old".encode()

    async def start(self, *node_ids):
        for node_id in node_ids:
            await self.nursery.start(self.links[node_id].run)

    async def accept(self, links, secured):
        try:
            await links.accept(secured)
        except DialError as error:
            self.refusals.append(error.reason)

    async def cut(self):
        """Break every connection."""
        streams, self.streams = self.streams, []
        for stream in streams:
            await trio.aclose_forcefully(stream)


class MemoryStream(PromptStream):
    """There is never room at once: the other end hears of it in a later turn, as over a network."""

    def __init__(self, stream):
        self._stream = stream
        self._rest = bytearray()

    def send_now(self, data):
        self._rest += data
        return not self._rest

    async def drain(self):
        data, self._rest = self._rest, bytearray()
        await self._stream.send_all(data)

    async def send_all(self, data):
        self.send_now(data)
        await self.drain()

    async def receive_some(self, max_bytes=None):
        return await self._stream.receive_some(max_bytes)

    async def wait_send_all_might_not_block(self):
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self):
        await self._stream.aclose()


class _Transport:
    def __init__(self, net, node_id):
        self._net = net
        self._node_id = node_id

    async def connect(self, host, port):
        net = self._net
        net.dialled.append((trio.current_time(), self._node_id, host))
        await trio.sleep(net.latency)
        if host in net.silent:
            await trio.sleep_forever()
        if host in net.down or host not in net.links:
            raise DialError(f"{host}: Connection refused", reason="unreachable")
        ours, theirs = map(MemoryStream, trio.testing.memory_stream_pair())
        net.streams += [ours, theirs]
        if host in net.closing:
            await theirs.aclose()
        else:
            net.nursery.start_soon(
                net.accept, net.links[host], Secured(theirs, "mem", net.certificate(self._node_id))
            )
        return Secured(ours, "mem", net.certificate(host))

    async def accept(self, secured):
        await trio.lowlevel.checkpoint()
        return secured

    def verify(self, certificate, their_time=0.0):
        node_id, _, old = certificate.decode().partition(" ")
        if node_id in self._net.revoked:
            raise IdentityError(f"{node_id} is revoked", reason="revoked")
        if old and node_id in self._net.replaced:
            raise IdentityError(f"{node_id} has another CA", reason="wrong_ca")
        check_dates(identity(node_id), self._net.clocks.get(self._node_id, NOW), their_time)
        return identity(node_id)


@asynccontextmanager
async def open_pair(kind, handlers):
    """(peers of A, id of B): ``links`` are real ones in memory, ``twin`` is the shipped twin."""
    async with trio.open_nursery() as nursery:
        if kind == "twin":
            network = Network(random.Random(1))
            network.peers(B, handlers, lambda: hello(B))
            yield network.peers(A, Handlers(), lambda: hello(A))
        else:
            net = MemoryNet(nursery)
            links = net.add(A)
            net.add(B, handlers)
            await net.start(A, B)
            links.want(B, [(B, 1)])
            yield links
        nursery.cancel_scope.cancel()
