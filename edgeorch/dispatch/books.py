"""What this node has placed on others and their samples do not show yet.

Without it, every task of a burst would go to the node that was best when the burst began.
"""

from dataclasses import dataclass, field

from edgeorch.model import Peer, Resources
from edgeorch.scoring import NOTHING, Promised


@dataclass(slots=True)
class _Line:
    node: str
    resources: Resources
    accepted_at: float | None = None
    """Monotonic time when the target's answer arrived; its next sample counts the attempt itself."""


@dataclass(slots=True)
class _Page:
    """One node's lines, and their sum as of its sample of that time; None: to be summed up again."""

    lines: dict[str, _Line] = field(default_factory=dict)
    sum: Promised | None = None
    sample_at: float = 0.0


class Books:
    """Promises by task id; a task has at most one."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._pages: dict[str, _Page] = {}

    def promise(self, task_id: str, node: str, resources: Resources) -> None:
        """The task is about to be offered to the node."""
        self.release(task_id)
        page = self._pages.setdefault(node, _Page())
        self._lines[task_id] = page.lines[task_id] = _Line(node, resources)
        page.sum = None

    def accepted(self, task_id: str, now: float) -> None:
        """The node has taken it: count it until a newer sample comes."""
        if line := self._lines.get(task_id):
            line.accepted_at = now

    def release(self, task_id: str) -> None:
        """Refused, ended or lost."""
        line = self._lines.pop(task_id, None)
        if line is not None:
            page = self._pages[line.node]
            del page.lines[task_id]
            page.sum = None
            if not page.lines:
                del self._pages[line.node]

    def on(self, peer: Peer) -> Promised:
        """The sum of what was placed on a node; what its sample shows already is dropped on the way.

        The same object until something changes.
        """
        page = self._pages.get(peer.info.id)
        if page is None:
            return NOTHING
        if page.sum is None or page.sample_at != peer.sample_at:
            for task_id, line in list(page.lines.items()):
                if line.accepted_at is not None and peer.sample_at > line.accepted_at:
                    self.release(task_id)
            lines = page.lines.values()
            page.sample_at = peer.sample_at
            page.sum = Promised(
                slots=len(lines),
                cpus=sum(line.resources.cpus for line in lines),
                memory=sum(line.resources.memory for line in lines),
            )
        return page.sum
