"""What a node's control traffic comes to among 1,000 against among 100, and how soon a newcomer is known.

Every node is the real membership code in one process; links are calls that encode, decode and count every
message, and time is virtual. So messages and bytes are exact; CPU time is that of the process, shared by all
nodes, without TLS and sockets. Nodes that join do so through one seed.
"""

import time

import trio
from _rounds import options, row, show, within
from _virtual import Counts, Network, VirtualNode, alive, grown
from trio.testing import MockClock

SETTLE_S = 15.0
"""All were met at one moment; by then they have come to be asked and spoken of at moments of their own."""
WINDOW_S = 0.5
ROUNDS_TO_JOIN = 5.0
PATIENCE_S = 60.0
SMALL, LARGE = 100, 1000


async def measure(count, windows):
    """Per window: messages, bytes and CPU milliseconds of a node in a second, links opened by it in a second.

    Then probe periods until all nodes and a newcomer know each other.
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
            found.append(
                (counts.messages / each, counts.bytes / each, cpu / each * 1e3, counts.handshakes / each)
            )
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
    return found, joined


def main() -> int:
    """Measure both fleets."""
    parser = options(__doc__)
    parser.add_argument(
        "--large", type=int, default=LARGE, help=f"nodes of the large fleet (default {LARGE})"
    )
    given = parser.parse_args()
    small, joined_small = trio.run(measure, SMALL, given.rounds, clock=MockClock(autojump_threshold=0))
    large, joined_large = trio.run(measure, given.large, given.rounds, clock=MockClock(autojump_threshold=0))
    what = (
        ("messages that a node sends", "/s", "<= 1.5"),
        ("bytes of them", "/s", "<= 1.5"),
        ("CPU time of a node's membership", "ms/s", "<= 1.5"),
    )
    rows = [
        row(
            f"{name}, {given.large:,} nodes",
            unit,
            [figures[which] for figures in large],
            f"{SMALL} nodes",
            [figures[which] for figures in small],
            goal=goal,
        )
        for which, (name, unit, goal) in enumerate(what)
    ]
    for count, joined in ((SMALL, joined_small), (given.large, joined_large)):
        what_joined = f"until {count:,} nodes and a newcomer know each other"
        rows.append(within(what_joined, "probe periods", [joined], ROUNDS_TO_JOIN))
    return show(rows, given)


if __name__ == "__main__":
    raise SystemExit(main())
