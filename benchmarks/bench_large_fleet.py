"""What a node's control traffic comes to among 1,000 against among 100, and how soon a newcomer is known.

Every node is the real membership code in one process; links are calls that encode, decode and count every
message, and time is virtual. So messages and bytes are exact. CPU time is without TLS and sockets, and judged
is that of nodes that go on alone once their fleet has settled, as a real one does (``_alone``): those of both
fleets take turns. Beside it is that of the process with all nodes in it, one fleet after the other, where the
tables of 1,000 compete for the processor's cache. Nodes that join do so through one seed.
"""

import statistics
import time

import trio
from _alone import some
from _rounds import options, row, show, within
from _virtual import Counts, Network, VirtualNode, alive, grown
from trio.testing import MockClock

SETTLE_S = 10.0
"""Until the first words that nodes had from the start have grown old."""
WINDOW_S = 0.5
ROUNDS_TO_JOIN = 5.0
PATIENCE_S = 60.0
SMALL, LARGE = 100, 1000


async def measure(count, windows):
    """Of the whole fleet.

    Returns:
        For each window messages, bytes and CPU milliseconds of a node in a second; probe periods until all
        nodes and a newcomer know each other; nodes that may go on alone.
    """
    network, found = Network(count), []
    async with trio.open_nursery() as nursery:
        nodes = await grown(network, count, nursery)
        await trio.sleep(SETTLE_S)
        for _ in range(windows):
            network.counts = counts = Counts()
            begun = time.process_time()
            await trio.sleep(WINDOW_S)
            cpu = time.process_time() - begun
            each = count * WINDOW_S
            found.append((counts.messages / each, counts.bytes / each, cpu / each * 1e3))
        newcomer = VirtualNode(network, count + 1, seeds=nodes[0].watch.addresses)
        await nursery.start(newcomer.membership.run)
        begun = trio.current_time()
        while not all(alive(node, newcomer) and alive(newcomer, node) for node in nodes):
            if trio.current_time() - begun > PATIENCE_S:
                known = sum(alive(node, newcomer) for node in nodes)
                raise SystemExit(f"{known} of {count} nodes know the newcomer after {PATIENCE_S:g} s")
            await trio.sleep(0.1)
        joined = (trio.current_time() - begun) / newcomer.config.membership.probe_s
        nursery.cancel_scope.cancel()
    return found, joined, some(nodes, newcomer)


async def both(large, rounds):
    """What ``measure`` says of both fleets, then CPU milliseconds of lone nodes, which take turns."""
    fleets = [await measure(count, rounds) for count in (SMALL, large)]
    lone = [[] for _ in fleets]
    for _ in range(rounds):
        turns = [
            [await node.run() for node in pair] for pair in zip(*(fleet[2] for fleet in fleets), strict=True)
        ]
        for values, mine in zip(lone, zip(*turns, strict=True), strict=True):
            values.append(statistics.mean(mine))
    return fleets, lone


def main() -> int:
    """Measure both fleets."""
    parser = options(__doc__)
    parser.add_argument(
        "--large", type=int, default=LARGE, help=f"nodes of the large fleet (default {LARGE})"
    )
    given = parser.parse_args()
    clock = MockClock(autojump_threshold=0)
    fleets, lone = trio.run(both, given.large, given.rounds, clock=clock)
    few, many = ([*zip(*found, strict=True), cpu] for (found, *_), cpu in zip(fleets, lone, strict=True))
    what = (
        ("messages that a node sends", "/s", "<= 1.5"),
        ("bytes of them", "/s", "<= 1.5"),
        ("CPU time of a node's membership where all share a process", "ms/s", ""),
        ("CPU time of a node's membership", "ms/s", "<= 1.5"),
    )
    rows = [
        row(f"{name}, {given.large:,} nodes", unit, list(ours), f"{SMALL} nodes", list(other), goal=goal)
        for (name, unit, goal), ours, other in zip(what, many, few, strict=True)
    ]
    for count, (_, joined, _) in zip((SMALL, given.large), fleets, strict=True):
        what_joined = f"until {count:,} nodes and a newcomer know each other"
        rows.append(within(what_joined, "probe periods", [joined], ROUNDS_TO_JOIN))
    return show(rows, given)


if __name__ == "__main__":
    raise SystemExit(main())
