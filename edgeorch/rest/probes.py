"""Routes for machines that watch: health, readiness, metrics."""

from collections.abc import Callable

from edgeorch.errors import UnavailableError
from edgeorch.rest.backend import Backend
from edgeorch.rest.routes import Answer, Asked, Route, Shown, answer
from edgeorch.rest.views import HealthDocument

METRICS = "text/plain; version=0.0.4; charset=utf-8"


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
        return Answer(body=self._metrics(), media=METRICS)

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
