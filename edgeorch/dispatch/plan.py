"""What was found out for a task: where it will go, and what to write down first."""

from dataclasses import dataclass, field

from edgeorch.dispatch.entry import Entry
from edgeorch.executor.executor import Admission
from edgeorch.model import Offer
from edgeorch.store import PutTask, TaskChange


@dataclass
class Plan:
    """What will be done with a task once its changes are on disk.

    Attributes:
        entry: the task.
        changes: rows to commit.
        admission: the slot held here.
        offer: what is offered to another node; None: nothing (waiting, or run here).
        target: id of that node.
        children: tasks that a ``spread`` or ``all`` task is split into.
    """

    entry: Entry
    changes: list[TaskChange] = field(default_factory=list)
    admission: Admission | None = None
    offer: Offer | None = None
    target: str = ""
    children: list[Entry] = field(default_factory=list)

    @property
    def placed(self) -> bool:
        """Whether a node was found."""
        return self.admission is not None or self.offer is not None or bool(self.children)

    def make_alone(self) -> None:
        """What failed with others is tried by itself: with the row as it is now, and nothing told twice."""
        task = self.entry.task
        others = [one for one in self.changes if not (isinstance(one, PutTask) and one.task.id == task.id)]
        left = [one for one in self.entry.unsaved if not any(one is other for other in others)]
        self.entry.unsaved = left
        self.changes = [PutTask(task=task), *others]
