"""One node of a large virtual fleet by itself: what its membership costs in a process of its own.

Where all nodes share a process (``_virtual``), each finds its table out of the processor's cache whenever its
turn comes, the more so the more tables there are; a real node has one. So once a fleet has settled, one of
its nodes goes on alone, with all that it has and does: its table, its probes, its timers, its collections.
The others are bytes that were encoded before: they answer and ask as they would have at that moment, as often
as before, and links to them open and close as before. What those bytes cost the others is not counted.
"""

import random
import time

import trio
from _virtual import WAY_S

from edgeorch.membership.probe import FANOUT, STRANGERS
from edgeorch.wire import codec, frames
from edgeorch.wire.frames import Kind
from edgeorch.wire.messages import Ping

WARM_S = 10.0
MEASURED_S = 30.0
COUNT = 4
"""Nodes of a fleet that go on alone, one after the other."""


def some(nodes, *others):
    """Some of a fleet's nodes, which have stopped just now; ``others`` have come to it since."""
    return [Alone(node, [*nodes, *others]) for node in nodes[:: len(nodes) // COUNT][:COUNT]]


class Alone:
    """One node of a fleet whose nodes have stopped just now, and what all others say to it as bytes."""

    def __init__(self, node, nodes):
        self.node, self.stopped = node, trio.current_time()
        self.senders, self.hellos, self.pings, self.pongs = {}, {}, {}, {}
        for other in nodes:
            if other is not node:
                pong = other.membership.handle_ping(node.as_sender(), Ping(info=node.self_info.info))
                ping = Ping(info=pong.info, sample=pong.sample, digest=pong.digest)
                self.senders[other.id] = other.as_sender()
                self.hellos[other.id] = _encoded(Kind.LINK, other.membership.hello())
                self.pings[other.id] = _encoded(Kind.REQUEST, ping)
                self.pongs[other.id] = _encoded(Kind.ANSWER, pong)
        some, rng = node.membership.table.some_alive, random.Random(node.id)
        self.asking = [some(FANOUT, rng, strangers=STRANGERS) for _ in range(int(WARM_S + MEASURED_S) + 1)]
        """Who asks the node in each period: as many as it asks, chosen as it chooses."""

    async def run(self, profile=None):
        """CPU milliseconds of the node in a second; ``profile`` is enabled meanwhile."""
        self._resume()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.node.membership.run)
            nursery.start_soon(self._ask)
            await trio.sleep(WARM_S)
            if profile:
                profile.enable()
            begun = time.process_time()
            await trio.sleep(MEASURED_S)
            cpu = time.process_time() - begun
            if profile:
                profile.disable()
            nursery.cancel_scope.cancel()
        self.stopped = trio.current_time()
        return cpu / MEASURED_S * 1e3

    def _resume(self):
        """For the node, no time has passed."""
        links, now = self.node.links, trio.current_time()
        self.node.membership.table.excuse(now - self.stopped, now)
        used = links.network.used
        for pair in used.keys() & {frozenset((self.node.id, other)) for other in self.senders}:
            used[pair] += now - self.stopped
        links.call = self._call

    async def _call(self, node_id, request):
        """What the node asks: ``LinkControl.call``."""
        if not self.node.links.connected(node_id):
            await trio.sleep(2 * WAY_S)
        self._use_link(node_id)
        _encoded(Kind.REQUEST, request)
        await trio.sleep(2 * WAY_S)
        return codec.answer(frames.decode(self.pongs[node_id]), type(request))

    async def _ask(self):
        """What the others ask the node."""
        period = self.node.config.membership.probe_s
        for asking in self.asking:
            for node_id in asking:
                self._use_link(node_id)
                ping = codec.body(frames.decode(self.pings[node_id]))
                _encoded(Kind.ANSWER, self.node.membership.handle_ping(self.senders[node_id], ping))
                await trio.sleep(period / len(asking))

    def _use_link(self, node_id):
        links = self.node.links
        if not links.connected(node_id):
            _encoded(Kind.LINK, self.node.membership.hello())
            hello = codec.body(frames.decode(self.hellos[node_id]))
            links.on_hello(self.senders[node_id], hello, None)
            links.on_up(node_id)
        links.network.used[frozenset((self.node.id, node_id))] = trio.current_time()


def _encoded(kind, message):
    return bytes(frames.encode(kind, 1, message)[4:])
