"""One node's mDNS part as a process: prints one JSON line for everything that happens, ends on SIGTERM."""

import json
import signal
import sys

import structlog
import trio

from edgeorch.config import Node
from edgeorch.membership import AddressWatch, Fleet, Mdns, SelfInfo
from edgeorch.model import NodeInfo


def say(event, **fields):
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


async def follow(watch, own):
    while True:
        changed = watch.changed
        own.change(addresses=watch.addresses)
        await changed.wait()


async def main(node_id, fleet, ca, *listen):
    watch = AddressWatch(Node(listen=listen))
    info = NodeInfo(
        id=node_id, name=f"name-{node_id}", fleet=fleet, version="1.2.3", addresses=watch.addresses
    )
    own = SelfInfo(info)
    mdns = Mdns(
        Fleet(fleet, ca),
        own,
        watch,
        found=lambda found, addresses: say("found", id=found, addresses=addresses),
        withdrawn=lambda gone: say("withdrawn", id=gone),
    )
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(watch.run)
            nursery.start_soon(follow, watch, own)
            await nursery.start(mdns.run)
            mdns.announce()
            async for _ in signals:
                nursery.cancel_scope.cancel()
    say("ended")


structlog.configure(processors=[structlog.processors.JSONRenderer()])
trio.run(main, *sys.argv[1:])
