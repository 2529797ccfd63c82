"""The Python client: ``AsyncClient`` on Trio, ``Client`` for plain code; neither loads the daemon."""

from typing import TYPE_CHECKING, Any

from edgeorch.client.answers import (
    Attempt,
    AuditPage,
    AuditRecord,
    Event,
    Node,
    Output,
    Ranked,
    Score,
    Task,
    TaskPage,
)
from edgeorch.client.calls import TaskFilter
from edgeorch.client.endpoint import Endpoint, resolve

if TYPE_CHECKING:
    from edgeorch.client.plain_client import Client
    from edgeorch.client.trio_client import AsyncClient

__all__ = [
    "AsyncClient",
    "Attempt",
    "AuditPage",
    "AuditRecord",
    "Client",
    "Endpoint",
    "Event",
    "Node",
    "Output",
    "Ranked",
    "Score",
    "Task",
    "TaskFilter",
    "TaskPage",
    "resolve",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  a class
    """Load a client when it is asked for: plain code needs no Trio, and the command line starts sooner."""
    if name == "AsyncClient":
        from edgeorch.client.trio_client import AsyncClient

        return AsyncClient
    if name == "Client":
        from edgeorch.client.plain_client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
