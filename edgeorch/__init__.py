"""Run containers and commands on the best-placed machine of a small fleet."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeorch.client import AsyncClient as AsyncClient
    from edgeorch.client import Client as Client
    from edgeorch.client import TaskFilter as TaskFilter

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # noqa: ANN401  a class
    """Load the client when it is asked for: the daemon and its runner never do."""
    if name in {"AsyncClient", "Client", "TaskFilter"}:
        return getattr(importlib.import_module("edgeorch.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
