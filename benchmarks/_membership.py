"""What the CPU time of a node's membership consists of in large virtual fleets, by whose code it is."""

import cProfile
import pstats
import statistics
import time

import _layers
import trio
from _alone import some
from _virtual import Counts, Network, grown
from trio.testing import MockClock

LAYERS = {
    "Trio": ("/trio/", "/outcome/", "/sniffio/"),
    "links that are calls, and who asks": ("/benchmarks/",),
    "encode and decode: edgeorch/wire": ("edgeorch/wire/",),
    "table: membership/table.py": ("edgeorch/membership/table.py",),
    "probe: membership/probe.py": ("edgeorch/membership/probe.py",),
    "the rest of edgeorch": ("edgeorch/",),
}
SETTLE_S = 10.0
"""As in ``bench_large_fleet``."""
WINDOW_S = 1.0
TURNS = 3


def look(*counts):
    """Fleets of so many nodes: what a node sends, and layer to milliseconds of its CPU time in a second."""
    return trio.run(_look, counts, clock=MockClock(autojump_threshold=0))


async def _look(counts):
    fleets = [await _settled(count) for count in counts]
    spent = [[] for _ in fleets]
    for _ in range(TURNS):
        for pair in zip(*(lone for _, lone in fleets), strict=True):
            for values, node in zip(spent, pair, strict=True):
                values.append(await node.run())
    found = []
    for (fleet, lone), values in zip(fleets, spent, strict=True):
        profile, cpu = cProfile.Profile(), statistics.mean(values)
        for node in lone:
            await node.run(profile)
        shares = _layers.by_layer(pstats.Stats(profile), LAYERS)
        found.append(fleet | {"cpu": cpu, "layers": {layer: share * cpu for layer, share in shares.items()}})
    return found


async def _settled(count):
    """What a fleet does together, and some of its nodes."""
    network = Network(count)
    async with trio.open_nursery() as nursery:
        nodes = await grown(network, count, nursery)
        await trio.sleep(SETTLE_S)
        network.counts = counts = Counts()
        begun = time.process_time()
        await trio.sleep(WINDOW_S)
        cpu = time.process_time() - begun
        nursery.cancel_scope.cancel()
    each = count * WINDOW_S
    fleet = {
        "what": f"{count:,} nodes",
        "messages": counts.messages / each,
        "links": counts.handshakes / each,
        "together": cpu / each * 1e3,
    }
    return fleet, some(nodes)
