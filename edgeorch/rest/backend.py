"""What the REST part asks of the node. ``dispatch.Dispatch`` is the real one; ``node.py`` hands it over."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

from edgeorch.dispatch.requests import AuditPage, Idempotency, NodeView, Submission, TaskPage
from edgeorch.model import Caller, Event, Ranked, Task, TaskSpec
from edgeorch.store import AuditFilter, TaskFilter
from edgeorch.wire.messages import Chunk, FollowOutput, OutputEnd


class Backend(Protocol):
    """Everything the API can do. Every method raises only ``EdgeorchError`` for a caller's mistake.

    Rights of a token's own tasks (``submit`` sees and cancels only its own) are checked here, because any
    node may be asked over the wire; roles per route are checked by REST.
    """

    async def submit(
        self, submissions: Sequence[Submission], caller: Caller, idempotency: Idempotency | None = None
    ) -> tuple[Task, ...]:
        """Accept all or none; when this returns they are on disk.

        The same key and body give the first call's tasks again, another body ``KeyReusedError``.
        """
        ...

    async def explain(self, spec: TaskSpec, caller: Caller) -> tuple[Ranked, ...]:
        """The ranking that a submission would see now; nothing is kept."""
        ...

    async def task(self, task_id: str, caller: Caller) -> Task:
        """Any task of the fleet. NotFoundError, OriginUnreachableError."""
        ...

    async def wait(self, task_id: str, caller: Caller, seconds: float) -> Task:
        """The task once it has ended, or as it is after ``seconds``."""
        ...

    async def wait_placed(self, task_id: str, seconds: float) -> Task:
        """A task of this node once a target has accepted it (or it ended), or as it is after ``seconds``."""
        ...

    async def tasks(self, which: TaskFilter, caller: Caller, *, local: bool) -> TaskPage:
        """Tasks of the fleet or of this node."""
        ...

    async def children(self, task_id: str, caller: Caller) -> tuple[Task, ...]:
        """The children of a task of this node or of another."""
        ...

    async def cancel(self, task_id: str, caller: Caller) -> Task:
        """Begin to cancel; idempotent."""
        ...

    def output(self, request: FollowOutput) -> AbstractAsyncContextManager[AsyncIterator[Chunk | OutputEnd]]:
        """Output of any task of the fleet, wherever it ran. Ends with one ``OutputEnd``."""
        ...

    def events(
        self, task_id: str | None, caller: Caller, after: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Events after ``after``, then live ones, until the context is left or the task has ended."""
        ...

    def nodes(self) -> tuple[NodeView, ...]:
        """Every node this one knows, itself first."""
        ...

    def node(self, name_or_id: str) -> NodeView:
        """One node; ``self`` names this one. NotFoundError."""
        ...

    async def change_node(
        self, name_or_id: str, action: Literal["drain", "cordon", "resume"], caller: Caller
    ) -> NodeView:
        """Change a node's state, over the wire where it is another."""
        ...

    async def forget(self, name_or_id: str, caller: Caller) -> None:
        """Drop a dead or left node from every table. ConflictError while it is alive."""
        ...

    async def audited(self, which: AuditFilter, caller: Caller, *, local: bool) -> AuditPage:
        """Who did what in the fleet or at this node, newest first."""
        ...

    def ready(self) -> Mapping[str, str]:
        """Check name to what is wrong, empty text where it is fine; ready when all are empty."""
        ...

    def statistics(self) -> Mapping[str, Any]:
        """Counts for ``/metrics``."""
        ...


__all__ = ["AuditPage", "Backend", "Idempotency", "NodeView", "Submission", "TaskPage"]
