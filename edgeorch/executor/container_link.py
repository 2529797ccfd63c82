"""The connection to the Docker Engine: made, watched, made again; and calls that end when it is lost."""

import random
import warnings
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

import structlog
import trio

from edgeorch.errors import DriverError
from edgeorch.executor.container_socket import away, look, resolve
from edgeorch.executor.driver import Available
from edgeorch.imports import without

if TYPE_CHECKING:
    from edgeorch.executor.container_engine import Engine, EngineStream

log = structlog.get_logger()

T = TypeVar("T")
OnEvent: TypeAlias = Callable[[dict[str, Any]], None]
OnUp: TypeAlias = Callable[[], Awaitable[None]]

PING_EVERY_S = 5.0
FIRST_TRY_S = 1.0
"""``run`` has started after this long, whether there is an Engine or not."""
_WAIT_S = (0.5, 15.0)
_CALLS = 8


class EngineLink:
    """Keeps a connection to one Engine.

    Args:
        host: ``docker.host`` of the configuration.
        labels: events of containers that carry all of them are passed on.
        rng: jitter of the waits between connects.
    """

    def __init__(self, host: str, labels: Sequence[str], rng: random.Random) -> None:
        self._host = resolve(host)
        self._from_environment = not host
        self._labels = list(labels)
        self._rng = rng
        self._calls = trio.CapacityLimiter(_CALLS)
        self._health = trio.CapacityLimiter(1)
        self._events = trio.CapacityLimiter(1)
        self._open_calls: set[trio.CancelScope] = set()
        self._engine: Engine | None = None
        self.available = Available(reason="the Docker Engine was not asked yet")
        self.changed = trio.Event()
        self.down_since: float | None = None
        """Trio's clock when the Engine was lost; None while it is there."""

    async def run(
        self,
        *,
        on_event: OnEvent,
        on_up: OnUp,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Keep connected until cancelled. Has started after the first try, or ``FIRST_TRY_S``.

        Args:
            on_event: takes each event.
            on_up: awaited after each connect, before the Engine counts as available.
            task_status: Trio's.
        """
        self.down_since = trio.current_time()
        tried = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stay_connected, tried, on_event, on_up)
            with trio.move_on_after(FIRST_TRY_S):
                await tried.wait()
            task_status.started()
        raise AssertionError("unreachable")

    @property
    def up(self) -> bool:
        """Whether calls can be made."""
        return self._engine is not None

    async def call(self, work: "Callable[[Engine], T]", *, limiter: trio.CapacityLimiter | None = None) -> T:
        """Do blocking work with the Engine in a thread. The thread is left behind on cancellation.

        Raises:
            DriverError: what ``work`` raises; ``driver_unavailable`` where the Engine is away or goes away.
        """
        engine = self._engine
        if engine is None:
            raise away(self.available.reason, self.available.hint)
        with trio.CancelScope() as scope:
            self._open_calls.add(scope)
            try:
                return await trio.to_thread.run_sync(
                    work, engine, limiter=limiter or self._calls, abandon_on_cancel=True
                )
            finally:
                self._open_calls.discard(scope)
        raise away("the connection to the Docker Engine was lost")

    async def _stay_connected(self, tried: trio.Event, on_event: OnEvent, on_up: OnUp) -> None:
        wait_s = _WAIT_S[0]
        while True:
            try:
                await self._connection(tried, on_event, on_up)
            except DriverError as error:
                if self.down_since is None:
                    self.down_since = trio.current_time()
                    wait_s = _WAIT_S[0]
                    log.warning("lost the Docker Engine", reason=error.detail)
                self._say(Available(reason=error.detail, hint=error.hint))
            tried.set()
            await trio.sleep(wait_s * self._rng.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, _WAIT_S[1])

    async def _connection(self, tried: trio.Event, on_event: OnEvent, on_up: OnUp) -> NoReturn:
        """One connection, from its making to its loss."""
        engine = await trio.to_thread.run_sync(
            _open, self._host, self._from_environment, limiter=self._health, abandon_on_cancel=True
        )
        stream = await trio.to_thread.run_sync(
            engine.events, self._labels, limiter=self._health, abandon_on_cancel=True
        )
        lost: list[DriverError] = []
        self._engine = engine
        try:
            async with trio.open_nursery() as nursery:

                async def until_lost(watch: Callable[[], Awaitable[None]]) -> None:
                    try:
                        await watch()
                    except DriverError as error:
                        lost.append(error)
                    nursery.cancel_scope.cancel()

                # Events are read from before ``on_up`` on, so that no exit falls between the two.
                nursery.start_soon(until_lost, lambda: self._read_events(stream, on_event))
                nursery.start_soon(until_lost, lambda: self._ping(engine))
                await on_up()
                self.down_since = None
                self._say(Available(version=engine.version))
                tried.set()
        finally:
            self._engine = None
            stream.close()
            engine.close()
            for scope in self._open_calls:
                scope.cancel()
        raise lost[0] if lost else away("the Docker Engine has closed the connection")

    async def _ping(self, engine: "Engine") -> None:
        while True:
            await trio.sleep(PING_EVERY_S)
            await trio.to_thread.run_sync(
                _check, self._host, engine, limiter=self._health, abandon_on_cancel=True
            )

    async def _read_events(self, stream: "EngineStream", on_event: OnEvent) -> None:
        token = trio.lowlevel.current_trio_token()

        def pump() -> None:
            with suppress(trio.RunFinishedError):
                for message in stream.messages():
                    token.run_sync_soon(on_event, message)

        await trio.to_thread.run_sync(pump, limiter=self._events, abandon_on_cancel=True)

    def _say(self, available: Available) -> None:
        if available != self.available:
            self.available = available
            self.changed.set()
            self.changed = trio.Event()


def _check(host: str, engine: "Engine") -> None:
    look(host)  # says best why nobody answers
    engine.ping()


def _open(host: str, from_environment: bool) -> "Engine":  # noqa: FBT001  run_sync passes by position
    look(host)
    # Only now: a node without an Engine need not load the SDK. It needs no detection of character sets
    # (3 MB) either: the Engine speaks UTF-8, which requests then takes for granted after a warning.
    warnings.filterwarnings("ignore", "Unable to find acceptable character detection dependency")
    with without("charset_normalizer"):
        from edgeorch.executor.container_engine import Engine

    return Engine(host, from_environment=from_environment)
