"""What this node has placed on others and their samples do not show yet.

Without it, every task of a burst would go to the node that was best when the burst began.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from edgeorch.model import Peer, Resources
from edgeorch.scoring import Promised


@dataclass
class _Line:
    node: str
    resources: Resources
    accepted_at: float | None = None
    """Monotonic time when the target's answer arrived; its next sample counts the attempt itself."""


class Books:
    """Promises by task id; a task has at most one."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def promise(self, task_id: str, node: str, resources: Resources) -> None:
        """The task is about to be offered to the node."""
        self._lines[task_id] = _Line(node, resources)

    def accepted(self, task_id: str, now: float) -> None:
        """The node has taken it: count it until a newer sample comes."""
        if line := self._lines.get(task_id):
            line.accepted_at = now

    def release(self, task_id: str) -> None:
        """Refused, ended or lost."""
        self._lines.pop(task_id, None)

    def promised(self, peers: Mapping[str, Peer]) -> dict[str, Promised]:
        """Sums by node id; promises that a sample already shows are dropped on the way."""
        sums: dict[str, Promised] = {}
        for task_id, line in list(self._lines.items()):
            peer = peers.get(line.node)
            if line.accepted_at is not None and peer is not None and peer.sample_at > line.accepted_at:
                del self._lines[task_id]
                continue
            old = sums.get(line.node, Promised())
            sums[line.node] = Promised(
                slots=old.slots + 1,
                cpus=old.cpus + line.resources.cpus,
                memory=old.memory + line.resources.memory,
            )
        return sums
