"""What tests of several virtual nodes do again and again."""

import trio

from edgeorch.testing.fleet import ADMIN

LONG = 5_000
"""Virtual seconds within which everything has happened."""


async def started(fleet, nursery, *names, slots=4):
    """Nodes of these names, each with its host, running."""
    nodes = [fleet.add(name, slots=slots) for name in names]
    for node in nodes:
        await nursery.start(node.host.run)
        await nursery.start(node.run)
    return nodes


async def ended(node, task, caller=ADMIN):
    """The task once it has ended, as this node tells it."""
    with trio.fail_after(LONG):
        return await node.dispatch.wait(task.id, caller, LONG)


async def until(node, task, done):
    """The task once ``done`` holds of it."""
    with trio.fail_after(LONG):
        return await node.dispatch.reader.until(task, LONG, done)
