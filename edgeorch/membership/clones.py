"""Notices nodes that share an id or a name: copied disks, copied keys, two boxes set up alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from edgeorch.model import NodeInfo, Peer, PeerState

log = structlog.get_logger()

REMEMBERED = 8
RETURNS = 2
"""A node may be reinstalled or move to another network; only clones go back and forth."""


@dataclass(slots=True)
class _Seen:
    before: list[NodeInfo] = field(default_factory=list)
    returns: int = 0


class Clones:
    """What was noticed, one sentence per pair; each is logged once."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._sentences: dict[str, str] = {}

    @property
    def found(self) -> tuple[str, ...]:
        """All sentences."""
        return tuple(self._sentences.values())

    def about(self, node_id: str) -> str:
        """The sentence about this id, empty when it is fine."""
        return self._sentences.get(node_id, "")

    def forget(self, node_id: str) -> None:
        """The node is gone, and with it what it had in common with another."""
        self._seen.pop(node_id, None)
        sentence = self._sentences.get(node_id)
        self._sentences = {key: text for key, text in self._sentences.items() if text != sentence}

    def check(self, info: NodeInfo, known: NodeInfo) -> None:
        """Compare what a node says with what the same id said before."""
        if info is known or not _another(info, known):
            return
        seen = self._seen.setdefault(info.id, _Seen())
        if any(not _another(info, earlier) for earlier in seen.before):
            seen.returns += 1
        else:
            seen.before = [*seen.before, info][-REMEMBERED:]
        if all(_another(known, earlier) for earlier in seen.before):
            seen.before = [*seen.before, known][-REMEMBERED:]
        if seen.returns >= RETURNS:
            first, second = sorted((_place(known), _place(info)))
            self._say(info.id, f"two nodes use the id {info.id}: at {first} and at {second}")

    def check_name(self, info: NodeInfo, peers: Sequence[Peer]) -> None:
        """Compare a node's name with those of the others that are here; a dead one may have been replaced."""
        for peer in peers:
            other = peer.info
            if (
                other.name == info.name
                and other.id != info.id
                and peer.state not in (PeerState.DEAD, PeerState.LEFT)
            ):
                ids = sorted((info.id, other.id))
                for node_id in ids:
                    self._say(node_id, f"two nodes use the name {info.name}: {ids[0]} and {ids[1]}")

    def _say(self, node_id: str, sentence: str) -> None:
        if node_id in self._sentences:
            return
        if sentence not in self._sentences.values():
            log.error(sentence, fix="issue each node its own keys, and give it its own state folder")
        self._sentences[node_id] = sentence


def _another(info: NodeInfo, other: NodeInfo) -> bool:
    """Another database, or nowhere the other is."""
    return info.store_id != other.store_id or not set(info.addresses) & set(other.addresses)


def _place(info: NodeInfo) -> str:
    return ", ".join(info.addresses) or "an unknown address"
