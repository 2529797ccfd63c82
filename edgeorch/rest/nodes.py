"""Routes of nodes: list, read, drain, cordon, resume, forget."""

import functools
from collections.abc import Callable
from typing import Literal

from edgeorch.rest.backend import Backend
from edgeorch.rest.routes import Answer, Asked, Route, Shown, answer
from edgeorch.rest.views import NodeDocument, NodesDocument, node_document

Action = Literal["drain", "cordon", "resume"]
_SUMMARIES: dict[Action, str] = {
    "drain": "Take nothing new; what runs ends or moves",
    "cordon": "Take nothing new; what runs goes on",
    "resume": "Take tasks again",
}


class NodeRoutes:
    """Serves ``/api/v1/nodes``.

    Args:
        backend: the node.
        wall: seconds since the epoch.
    """

    def __init__(self, backend: Backend, wall: Callable[[], float]) -> None:
        self._backend = backend
        self._wall = wall

    async def every(self, asked: Asked) -> Answer:  # noqa: ARG002  every handler takes it
        """All nodes."""
        now = self._wall()
        return answer(NodesDocument(nodes=tuple(node_document(view, now) for view in self._backend.nodes())))

    async def read(self, asked: Asked) -> Answer:
        """One node."""
        return answer(node_document(self._backend.node(asked.path["id"]), self._wall()))

    async def change(self, asked: Asked, action: Action) -> Answer:
        """Drain, cordon or resume."""
        view = await self._backend.change_node(asked.path["id"], action, asked.caller)
        return answer(node_document(view, self._wall()))

    async def forget(self, asked: Asked) -> Answer:
        """Drop a node that is gone."""
        await self._backend.forget(asked.path["id"], asked.caller)
        return Answer(status=204)

    def routes(self) -> tuple[Route, ...]:
        """The table."""
        changes = tuple(
            Route(
                "POST",
                f"/api/v1/nodes/{{id}}/{action}",
                f"{action}Node",
                "admin",
                functools.partial(self.change, action=action),
                summary,
                {200: Shown("The node.", NodeDocument)},
                problems=(404, 409, 503, 507),
                tag="nodes",
            )
            for action, summary in _SUMMARIES.items()
        )
        return (
            Route(
                "GET",
                "/api/v1/nodes",
                "listNodes",
                "read",
                self.every,
                "Every node that this one knows, itself first",
                {200: Shown("The nodes.", NodesDocument)},
                tag="nodes",
            ),
            Route(
                "GET",
                "/api/v1/nodes/{id}",
                "readNode",
                "read",
                self.read,
                "One node by id or name; ``self`` is the asked one",
                {200: Shown("The node.", NodeDocument)},
                problems=(404,),
                tag="nodes",
            ),
            *changes,
            Route(
                "DELETE",
                "/api/v1/nodes/{id}",
                "forgetNode",
                "admin",
                self.forget,
                "Forget a node that is dead or has left",
                {204: Shown("Forgotten.")},
                problems=(404, 409, 503, 507),
                tag="nodes",
            ),
        )
