"""What streamed answers share: items by a channel, silence, and errors out of groups."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from edgeorch.errors import EdgeorchError

T = TypeVar("T")

HEAD_WAIT_S = 0.25
"""How long a head waits to learn that only a tail is left, or that nothing more comes."""
END: Any = object()
"""What ``soon`` gives at the end."""


@asynccontextmanager
async def pumped(items: AsyncIterator[T]) -> AsyncIterator["trio.MemoryReceiveChannel[T]"]:
    """Items by a channel, because waiting for an iterator cannot be given up without ending the iterator."""
    send, receive = trio.open_memory_channel[T](0)

    async def pump() -> None:
        async for item in items:
            await send.send(item)
        # Only a good end closes the channel: an error must not look like one, it cancels who waits.
        send.close()

    async with send, receive, trio.open_nursery() as nursery:
        nursery.start_soon(pump)
        yield receive
        nursery.cancel_scope.cancel()


async def soon(channel: "trio.MemoryReceiveChannel[Any]", seconds: float = HEAD_WAIT_S) -> Any:  # noqa: ANN401
    """The next item, None after this much silence, or ``END``."""
    with trio.move_on_after(seconds):
        try:
            return await channel.receive()
        except trio.EndOfChannel:
            return END
    return None


def first_error(group: BaseExceptionGroup[EdgeorchError]) -> EdgeorchError:
    """The first expected error in a group of them."""
    for error in group.exceptions:
        return first_error(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("groups are never empty")
