"""What callers hand in and get back, beside the model's own types."""

from typing import Self

import msgspec

from edgeorch.model import Kept, Peer, Score, SecretBytes, Task, TaskSpec
from edgeorch.secret import Secret
from edgeorch.store import PutAudit


class Submission(Kept, frozen=True, kw_only=True):
    """One spec, decoded and as it came, but for its secrets: of those both hold the names alone."""

    spec: TaskSpec
    raw: bytes
    """The accepted JSON, byte for byte."""
    service_id: bool = False
    """Number the task for the original API (``Task.service_id``)."""
    secrets: dict[str, Secret] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, spec: TaskSpec, raw: bytes, *, service_id: bool = False) -> Self:
        """Take the secrets out of a spec and of its JSON, so that no later step can give them away."""
        if not spec.secrets:
            return cls(spec=spec, raw=raw, service_id=service_id)
        found: dict[str, Secret] = {}
        for name, value in spec.secrets.items():
            if value is not None:
                found[name] = Secret(value.base64 if isinstance(value, SecretBytes) else value.encode())
        names = dict.fromkeys(spec.secrets)
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        fields["secrets"] = msgspec.Raw(msgspec.json.encode(names))
        return cls(
            spec=msgspec.structs.replace(spec, secrets=names),
            raw=msgspec.json.encode(fields),
            service_id=service_id,
            secrets=found,
        )


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


class AuditPage(Kept, frozen=True, kw_only=True):
    """Audit records, newest first; see ``TaskPage``."""

    records: tuple[PutAudit, ...]
    names: dict[str, str] = msgspec.field(default_factory=dict)
    """Node id to name, of every node that is mentioned."""
    unreachable: tuple[str, ...] = ()
    more: bool = False


class NodeView(Kept, frozen=True, kw_only=True):
    """One node with the score that an empty spec would get there."""

    peer: Peer
    score: Score
    is_self: bool = False
