"""What callers hand in and get back, beside the model's own types."""

from edgeorch.model import Kept, Peer, Score, Task, TaskSpec


class Submission(Kept, frozen=True, kw_only=True):
    """One spec, decoded and as it came."""

    spec: TaskSpec
    raw: bytes
    """The accepted JSON, byte for byte."""
    service_id: bool = False
    """Number the task for the original API (``Task.service_id``)."""


class Idempotency(Kept, frozen=True, kw_only=True):
    """An Idempotency-Key and the SHA-256 of the body that came with it."""

    key: str
    body: bytes


class TaskPage(Kept, frozen=True, kw_only=True):
    """Tasks, newest first, and the names of the nodes that did not answer."""

    tasks: tuple[Task, ...]
    unreachable: tuple[str, ...] = ()
    more: bool = False
    """Whether there are older ones."""


class NodeView(Kept, frozen=True, kw_only=True):
    """One node with the score that an empty spec would get there."""

    peer: Peer
    score: Score
    is_self: bool = False
