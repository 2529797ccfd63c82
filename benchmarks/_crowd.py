"""Many peers of one node in one process: real keys, TLS links and failure detectors, nothing else of a node.

``python benchmarks/_crowd.py HOST:PORT FOLDER …`` (a folder of keys per peer) prints a line when all are
linked with the node, and ends with its standard input. The peers have no links with each other, so that what
they do costs little beside what the node does; in their digests they speak of each other as real peers would.
"""

import random
import sys
import time
from pathlib import Path

import trio
from _virtual import InlineSampler, Machine, NoList, Watch

from edgeorch.config import Config, Discovery, Loaded, Log
from edgeorch.identity import load_identity
from edgeorch.logs import set_up
from edgeorch.membership import ExecutorLoad, Fleet, Membership, SelfInfo
from edgeorch.membership.self_info import INCARNATIONS_PER_BOOT
from edgeorch.model import NodeInfo, PeerState
from edgeorch.seams import Seams
from edgeorch.wire import Handlers
from edgeorch.wire.links import Links
from edgeorch.wire.messages import Digest
from edgeorch.wire.transport import Tls


class CrowdMembership(Membership):
    """Dials nobody but its seed."""

    def _learned(self, _lines):
        """What the node says of the others is known."""


class CrowdPeer:
    """One peer."""

    def __init__(self, folder, number, seed, crowd):
        config = Config(discovery=Discovery(mdns=False, seeds=(seed,)))
        loaded = Loaded(config=config, path=folder / "edgeorch.toml", origins={})
        identity = load_identity(loaded, wall=time.time)
        address = f"127.250.{number >> 8}.{(number & 255) + 1}"
        info = NodeInfo(
            id=identity.node_id,
            name=identity.name,
            fleet=identity.fleet,
            version="1.0.0",
            cpus=4,
            memory=1 << 33,
            drivers={"native": "1"},
            addresses=(address,),
            store_id=f"{number:032x}",
            boot=1,
            incarnation=INCARNATIONS_PER_BOOT,
        )
        seams, self_info, handlers = Seams(), SelfInfo(info), Handlers()
        hello = lambda: self.membership.hello()  # noqa: E731, PLW0108  membership needs links first
        self.links = Links(Tls(identity), hello, handlers, max_links=64, rng=seams.rng)
        self.membership = CrowdMembership(
            config,
            self_info,
            self.links,
            handlers,
            revocations=NoList(),
            sampler=InlineSampler(Machine(), lambda: ExecutorLoad(slots=8), seams),
            watch=Watch(address),
            fleet=Fleet(identity.fleet, "ca"),
            seams=seams,
        )
        self.info = info
        self._crowd = crowd
        self.membership.table.digest = self.digest

    def digest(self, limit, rng, _now, *, receiver):
        """What it says of others: as many lines, and as long, as those of a real peer."""
        others = [peer.info for peer in self._crowd if peer is not self]
        chosen = rng.sample(others, min(limit, len(others)))
        lines = [
            Digest(
                id=info.id,
                state=PeerState.ALIVE,
                incarnation=info.incarnation,
                addresses=info.addresses,
                wire_port=info.wire_port,
                age_s=random.random(),
            )
            for info in chosen
        ]
        return tuple(line for line in lines if line.id != receiver)

    async def linked(self):
        """Wait until it sees the node alive."""
        while not any(peer.state is PeerState.ALIVE for peer in self.membership.snapshot().values()):
            await self.membership.changed.wait()


async def main(seed, folders):
    """Run the peers until standard input ends."""
    crowd = []
    for number, folder in enumerate(folders):
        crowd.append(CrowdPeer(Path(folder), number, seed, crowd))
    async with trio.open_nursery() as nursery:
        for peer in crowd:
            await nursery.start(peer.links.run)
            await nursery.start(peer.membership.run)
        for peer in crowd:
            await peer.linked()
        print("linked", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    set_up(Log(level="error"))
    trio.run(main, sys.argv[1], sys.argv[2:])
