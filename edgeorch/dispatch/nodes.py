"""Nodes as people see them, and what an administrator may do with them."""

from typing import Literal, Protocol

import trio

from edgeorch.dispatch.requests import NodeView
from edgeorch.dispatch.view import View
from edgeorch.errors import ConflictError, EdgeorchError, NodeUnreachableError, WireError
from edgeorch.executor.executor import Me
from edgeorch.model import Caller, Peer, PeerState
from edgeorch.scoring import score
from edgeorch.wire import Peers
from edgeorch.wire.messages import ChangeNode, ForgetNode, NodeStatus

ASK_S = 5.0
Action = Literal["drain", "cordon", "resume"]
STATES: dict[Action, Literal["draining", "cordoned", "ready"]] = {
    "drain": "draining",
    "cordon": "cordoned",
    "resume": "ready",
}


class NodeChanges(Me, Protocol):
    """This node's facts, with the one that can be changed from outside."""

    def set_state(self, state: Literal["ready", "cordoned", "draining"]) -> None:
        """Take offers or not; kept over restarts and told to the others with the next probe."""
        ...


class Nodes:
    """Reads and changes nodes."""

    def __init__(self, view: View, me: NodeChanges, peers: Peers) -> None:
        self.view = view
        self.me = me
        self.peers = peers

    def all(self) -> tuple[NodeView, ...]:
        """Every known node, this one first, the others by name."""
        peers = list(self.view.peers().values())
        peers[1:] = sorted(peers[1:], key=lambda peer: peer.info.name)
        return tuple(self._view(peer) for peer in peers)

    def one(self, name_or_id: str) -> NodeView:
        """One node by id, name or ``self``."""
        return self._view(self.view.find(name_or_id))

    async def change(self, name_or_id: str, action: Action, caller: Caller) -> NodeView:
        """Drain, cordon or resume a node.

        Raises:
            NodeUnreachableError: it is another one and does not answer.
        """
        peer = self.view.find(name_or_id)
        if peer.info.id == self.view.node_id:
            self.me.set_state(STATES[action])
            return self.one("self")
        request = ChangeNode(caller=caller, action=action)
        answer: NodeStatus | None = None
        with trio.move_on_after(ASK_S):
            answer = await self.peers.call(peer.info.id, request)
        if answer is None:
            raise NodeUnreachableError(f"node {peer.info.name} did not answer in {ASK_S:g} s")
        if answer.info.id != peer.info.id:
            raise WireError(f"node {peer.info.name} answered for another node")
        changed = Peer(
            info=answer.info,
            state=peer.state,
            since=peer.since,
            sample=answer.sample or peer.sample,
            sample_at=trio.current_time(),
            rtt_s=peer.rtt_s,
            address=peer.address,
        )
        return self._view(changed)

    async def forget(self, name_or_id: str, caller: Caller) -> None:
        """Drop a dead or left node here and at every node that answers.

        Raises:
            ConflictError: the node is alive.
        """
        peer = self.view.find(name_or_id, gone=True)
        if peer.info.id == self.view.node_id or peer.state in (PeerState.ALIVE, PeerState.SUSPECT):
            raise ConflictError(
                f"node {peer.info.name} is alive", hint="stop it first; a live node would come back at once"
            )
        async with trio.open_nursery() as nursery:
            for other in self.view.alive():
                nursery.start_soon(self._tell, other, ForgetNode(caller=caller, node_id=peer.info.id))
        self.view.membership.forget(peer.info.id)

    async def _tell(self, node: str, request: ForgetNode) -> None:
        try:
            with trio.move_on_after(ASK_S):
                await self.peers.call(node, request)
        except EdgeorchError:
            # It drops the node by itself after membership.forget_s.
            return

    def _view(self, peer: Peer) -> NodeView:
        is_self = peer.info.id == self.view.node_id
        promised = self.view.books.on(peer)
        found = score(
            peer.info,
            peer.sample,
            peer.rtt_s,
            None,
            promised,
            formula=self.view.scoring.formula,
            sample_age_s=max(trio.current_time() - peer.sample_at, 0.0),
        )
        return NodeView(peer=peer, score=found, is_self=is_self)
