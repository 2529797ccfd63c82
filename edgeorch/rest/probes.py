"""Routes for machines that watch: health, readiness, metrics."""

import math
from collections.abc import Callable

import trio

from edgeorch.errors import UnavailableError
from edgeorch.rest.backend import Backend
from edgeorch.rest.routes import Answer, Asked, Route, Shown, answer
from edgeorch.rest.views import HealthDocument

METRICS = "text/plain; version=0.0.4; charset=utf-8"
RENDER_S = 0.25
"""For so long the text is answered again: rendering takes as long as ten small requests."""


class NotReadyError(UnavailableError):
    """Some checks fail; ``extra`` names them in the problem, without their reasons: anybody may ask."""

    def __init__(self, failing: list[str]) -> None:
        super().__init__(f"not ready: {', '.join(failing)}", hint="`edgeorch doctor` on the node says more")
        self.extra = {"failing": failing}


class ProbeRoutes:
    """Serves the probes.

    Args:
        backend: the node.
        metrics: gives the Prometheus text.
    """

    def __init__(self, backend: Backend, metrics: Callable[[], bytes]) -> None:
        self._backend = backend
        self._metrics = metrics
        self._rendered, self._rendered_at = b"", -math.inf

    async def healthy(self, asked: Asked) -> Answer:  # noqa: ARG002  every handler takes it
        """That this answers at all says that the node's loop runs."""
        return answer(HealthDocument(status="ok"))

    async def ready(self, asked: Asked) -> Answer:  # noqa: ARG002
        """Whether every part is ready."""
        failing = [name for name, wrong in self._backend.ready().items() if wrong]
        if failing:
            raise NotReadyError(failing)
        return answer(HealthDocument(status="ready"))

    async def metrics(self, asked: Asked) -> Answer:  # noqa: ARG002
        """Counts of all parts."""
        now = trio.current_time()
        if now - self._rendered_at >= RENDER_S:
            self._rendered, self._rendered_at = self._metrics(), now
        return Answer(body=self._rendered, media=METRICS)

    def routes(self) -> tuple[Route, ...]:
        """The table."""
        return (
            Route(
                "GET",
                "/healthz",
                "healthz",
                "none",
                self.healthy,
                "Whether the node is alive",
                {200: Shown("It is.", HealthDocument)},
            ),
            Route(
                "GET",
                "/readyz",
                "readyz",
                "none",
                self.ready,
                "Whether the node can take requests",
                {200: Shown("It can.", HealthDocument)},
                problems=(503,),
            ),
            Route(
                "GET",
                "/metrics",
                "metrics",
                "read",
                self.metrics,
                "Prometheus metrics",
                {200: Shown("Prometheus text format.", media="text/plain")},
            ),
        )
