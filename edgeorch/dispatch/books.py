"""What this node knows better than the samples of others: what it has placed there, and what has ended since.

Without the first, every task of a burst would go to the node that was best when the burst began. Without the
second, a node that ran a few short tasks when it was measured would seem busy until it is measured again.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from edgeorch.model import Peer, Resources
from edgeorch.scoring import NOTHING, Promised

KEPT_S = 60.0
"""What ended on a node that nobody looks at, gone or one of very many, is forgotten after this."""


@dataclass(slots=True)
class _Line:
    node: str
    resources: Resources
    accepted_at: float | None = None
    """Monotonic time when the target's answer arrived; its next sample counts the attempt itself."""
    ended_at: float | None = None
    """Monotonic time when its end was reported; its next sample counts the attempt no more."""


@dataclass(slots=True)
class _Page:
    """One node's lines, and their sum as of its sample of that time; None: to be summed up again."""

    lines: dict[str, _Line] = field(default_factory=dict)
    sum: Promised | None = None
    sample_at: float = 0.0


class Books:
    """Lines by task id; a task has at most one.

    Attributes:
        pages: by node id, of those on which something was placed.
        on_free: called when something has ended elsewhere: there may be a place again.
    """

    def __init__(self) -> None:
        self.pages: dict[str, _Page] = {}
        self.on_free: Callable[[], None] = lambda: None
        self._lines: dict[str, _Line] = {}
        self._ended: deque[tuple[float, str]] = deque()

    def promise(self, task_id: str, node: str, resources: Resources) -> None:
        """The task is about to be offered to the node."""
        self.release(task_id)
        page = self.pages.setdefault(node, _Page())
        self._lines[task_id] = page.lines[task_id] = _Line(node, resources)
        page.sum = None

    def accepted(self, task_id: str, now: float, *, shown: bool = False) -> None:
        """The node has taken it: count it until a newer sample comes.

        Args:
            task_id: the task.
            now: monotonic time.
            shown: the answer brought a sample, which counts it already.
        """
        if line := self._lines.get(task_id):
            line.accepted_at = -math.inf if shown else now
            self.pages[line.node].sum = None

    def ended(self, task_id: str, now: float) -> None:
        """It runs there no more: where the sample shows it, count it off until a newer one comes."""
        line = self._lines.get(task_id)
        if line is not None and line.accepted_at is None:
            self.release(task_id)
        elif line is not None and line.ended_at is None:
            line.ended_at = now
            self.pages[line.node].sum = None
            self._ended.append((now, task_id))
            while now - self._ended[0][0] > KEPT_S:
                at, old = self._ended.popleft()
                if (kept := self._lines.get(old)) and kept.ended_at == at:
                    self.release(old)
            self.on_free()

    def release(self, task_id: str) -> None:
        """It was never there."""
        line = self._lines.pop(task_id, None)
        if line is not None:
            page = self.pages[line.node]
            del page.lines[task_id]
            page.sum = None
            if not page.lines:
                del self.pages[line.node]

    def on(self, peer: Peer) -> Promised:
        """Sums of what a node's newest sample does not show; the same object until something changes."""
        page = self.pages.get(peer.info.id)
        if page is None:
            return NOTHING
        if page.sum is None or page.sample_at != peer.sample_at:
            self._sum_up(page, peer.sample_at)
        return page.sum or NOTHING

    def _sum_up(self, page: _Page, at: float) -> None:
        coming, gone = [], []
        for task_id, line in list(page.lines.items()):
            shown = line.accepted_at is not None and line.accepted_at < at
            if line.ended_at is None:
                if not shown:
                    coming.append(line.resources)
            elif shown and at < line.ended_at:
                gone.append(line.resources)
            else:
                self.release(task_id)
        page.sample_at = at
        page.sum = Promised(
            slots=len(coming),
            cpus=sum(one.cpus for one in coming),
            memory=sum(one.memory for one in coming),
            ended=len(gone),
            ended_cpus=sum(one.cpus for one in gone),
        )
