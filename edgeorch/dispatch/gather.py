"""One page of what all nodes have, newest first: every node is asked for its own, who is silent is named."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import trio

from edgeorch.model import Peer, PeerState


class Row(Protocol):
    """Something that a node keeps; ids grow with time."""

    @property
    def id(self) -> str:
        """Unique in the fleet."""
        ...


T = TypeVar("T", bound=Row)


@dataclass(frozen=True)
class Page(Generic[T]):
    """What was found.

    Attributes:
        rows: newest first.
        unreachable: names of nodes whose rows are missing.
        more: whether there are older ones.
    """

    rows: tuple[T, ...]
    unreachable: tuple[str, ...]
    more: bool


async def newest(
    own: Sequence[T],
    peers: Iterable[Peer],
    ask: Callable[[str], Awaitable[tuple[Sequence[T], bool] | None]],
    limit: int,
) -> Page[T]:
    """This node's rows and those of others.

    Args:
        own: this node's, newest first.
        peers: whom to ask.
        ask: gives a node's rows, newest first, and whether it has older ones; None where it does not answer.
        limit: at most so many.
    """
    found, unreachable, ends = list(own), list[str](), list[str]()

    async def one_more(node: str, name: str) -> None:
        answer = await ask(node)
        if answer is None:
            unreachable.append(name)
            return
        rows, more = answer
        found.extend(rows)
        if more and rows:
            ends.append(rows[-1].id)

    async with trio.open_nursery() as nursery:
        for peer in peers:
            if peer.state is PeerState.ALIVE:
                nursery.start_soon(one_more, peer.info.id, peer.info.name)
            else:
                unreachable.append(peer.info.name)
    found.sort(key=lambda row: row.id, reverse=True)
    # Where a node's list was cut, what is older may be missing: the page ends there, the next goes on.
    cut = max(ends, default="")
    rows = tuple(row for row in found if row.id >= cut)[:limit]
    return Page(rows, tuple(sorted(unreachable)), bool(cut) or len(found) > len(rows))
