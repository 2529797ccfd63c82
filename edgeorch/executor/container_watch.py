"""Looks after started containers: their output, their end, their removal, also over a loss of the Engine."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import trio

from edgeorch.errors import DriverError
from edgeorch.executor import container_body as body
from edgeorch.executor.container_link import EngineLink
from edgeorch.executor.container_output import Source, copy
from edgeorch.executor.container_state import KILLED, NEVER_STARTED, REMOVED, Watched, exit_of
from edgeorch.model import Exit, Handle

if TYPE_CHECKING:
    from edgeorch.executor.container_engine import EngineStream

log = structlog.get_logger()

OOM_LATE_S = (0.2, 0.5, 1.0)
"""How much later than the end the word may come that memory was the reason."""


class Watch:
    """The containers of one driver that matter now.

    Args:
        link: the Engine.
        followers: outputs that are copied at a time.
    """

    def __init__(self, link: EngineLink, followers: trio.CapacityLimiter) -> None:
        self._link = link
        self._nursery: trio.Nursery | None = None
        self._followers = followers
        self._watched: dict[str, Watched] = {}
        self.doomed: set[str] = set()
        """Containers to remove when there is an Engine."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; copies of output end then, containers do not."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    @property
    def _tasks(self) -> trio.Nursery:
        if self._nursery is None:
            raise AssertionError("the driver is used only while it runs")
        return self._nursery

    def __len__(self) -> int:
        return len(self._watched)

    def __contains__(self, ref: str) -> bool:
        return ref in self._watched

    def soon(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something beside everything else."""
        self._tasks.start_soon(work)

    def by_key(self, key: str) -> Watched | None:
        """The container of an attempt."""
        return next((watched for watched in self._watched.values() if watched.key == key), None)

    def add(self, watched: Watched, stream: "EngineStream") -> None:
        """Watch a container that is about to be started; ``stream`` is its output from the beginning."""
        self._watched[watched.handle.ref] = watched
        self._copy_soon(watched, stream, Source.START)

    def started(self, watched: Watched) -> None:
        """The Engine has started it; what happened to it meanwhile is looked at now."""
        watched.starting = False
        if watched.unsettled:
            self._tasks.start_soon(self._try_to_settle, watched)

    def adopt(self, handle: Handle) -> Watched:
        """The container of a handle. One that is new here is asked for now, or when the Engine is back."""
        known = self._watched.get(handle.ref)
        if known is not None:
            return known
        watched = self._watched[handle.ref] = Watched(handle)
        if self._link.up:
            self._tasks.start_soon(self._try_to_settle, watched)
        return watched

    def forget(self, ref: str) -> None:
        """Its end matters no more."""
        watched = self._watched.pop(ref, None)
        if watched is not None and watched.stream is not None:
            watched.stream.close()

    # What the Engine tells

    def on_event(self, event: dict[str, Any]) -> None:
        """Take an event of the Engine."""
        actor = event.get("Actor", {})
        watched = self._watched.get(actor.get("ID", ""))
        if watched is None:
            return
        match event.get("Action"):
            case "oom":
                watched.oom = True
            case "destroy":
                watched.finish(REMOVED)
            case "die":
                code = actor.get("Attributes", {}).get("exitCode")
                if code == "0" and not watched.oom and not watched.restarts:
                    watched.finish(Exit(exit_code=0))
                else:
                    self._tasks.start_soon(self._try_to_settle, watched)

    async def catch_up(self) -> None:
        """After a connect: catch up on what happened without us."""
        for ref in self.doomed:
            self._tasks.start_soon(self.remove, ref)
        async with trio.open_nursery() as nursery:
            for watched in self._watched.values():
                nursery.start_soon(partial(self._try_to_settle, watched, outage=True))

    async def _try_to_settle(self, watched: Watched, *, outage: bool = False) -> None:
        try:
            await self.settle(watched, outage=outage)
        except DriverError as error:
            # driver_unavailable: done again when the Engine is back
            log.warning("cannot ask for a container", container=watched.handle.ref[:12], reason=error.detail)

    async def settle(self, watched: Watched, *, outage: bool = False) -> None:
        """Ask the Engine how a container is; take up its output where nobody copies it; record its end."""
        ref = watched.handle.ref
        async with watched.settling:
            if watched.starting:
                watched.unsettled = True
                return
            if watched.exited.is_set():
                return
            found = await self._link.call(lambda engine: engine.inspect(ref))
            if found is None:
                watched.finish(REMOVED)
                return
            if found["State"]["Status"] == "created":
                watched.finish(NEVER_STARTED)
                return
            labels = found["Config"]["Labels"] or {}
            watched.key = labels.get(body.ATTEMPT, "")
            watched.output_max = int(labels.get(body.OUTPUT_MAX, "0"))
            watched.tty = found["Config"]["Tty"]
            watched.json_log = found["HostConfig"]["LogConfig"]["Type"] == "json-file"
            watched.restarts = body.restarts(found)
            running = bool(found["State"]["Running"])
            # One that has ended before anybody here watched it may have ended with the machine.
            outage = outage or watched.copied is None
            # Where only this container has ended, the end of its stream was the end of its output.
            incomplete = outage or running or watched.restarts
            if watched.copied is None or (watched.copied.is_set() and incomplete):
                await self._copy_again(watched, running=running)
            if not running:
                state = await self._with_oom(watched, found)
                memory = int(found["HostConfig"].get("Memory") or 0)
                watched.finish(exit_of(state, outage=outage, memory=memory))

    async def _with_oom(self, watched: Watched, found: dict[str, Any]) -> dict[str, Any]:
        """The final state: the Engine learns of the end and of the want of memory in any order."""
        state: dict[str, Any] = found["State"]
        killed = state.get("ExitCode") == KILLED and found["HostConfig"].get("Memory")
        ref = watched.handle.ref
        for pause_s in OOM_LATE_S if killed else ():
            if state.get("OOMKilled") or watched.oom:
                break
            await trio.sleep(pause_s)
            again = await self._link.call(lambda engine: engine.inspect(ref))
            state = again["State"] if again is not None else state
        return {**state, "OOMKilled": bool(state.get("OOMKilled")) or watched.oom}

    # Output

    async def _copy_again(self, watched: Watched, *, running: bool) -> None:
        ref = watched.handle.ref
        source = Source.JSON_REPLAY if watched.json_log else Source.REPLAY
        try:
            stream = await self._link.call(lambda engine: engine.logs(ref))
        except DriverError as error:
            if error.reason == "driver_unavailable":
                raise
            log.warning(
                "what this container wrote meanwhile is lost", container=ref[:12], reason=error.detail
            )
            if not running:
                return
            stream = await self._link.call(lambda engine: engine.attach(ref))
            source = Source.NOW
        self._copy_soon(watched, stream, source)

    def _copy_soon(self, watched: Watched, stream: "EngineStream", source: Source) -> None:
        watched.stream, watched.copied = stream, trio.Event()
        self._tasks.start_soon(self._copy, watched, stream, watched.copied, source)

    async def _copy(self, watched: Watched, stream: "EngineStream", done: trio.Event, source: Source) -> None:
        stdout, stderr = Path(watched.handle.stdout), Path(watched.handle.stderr)
        work = partial(
            copy, stream, stdout, stderr, max_bytes=watched.output_max, tty=watched.tty, source=source
        )
        try:
            await trio.to_thread.run_sync(work, limiter=self._followers, abandon_on_cancel=True)
        except OSError as error:
            log.warning("cannot keep a container's output", key=watched.key, reason=str(error))
        finally:
            stream.close()
            done.set()
        if watched.restarts and self._link.up and watched.handle.ref in self._watched:
            # the next run of a restarted container has a stream of its own
            await self._try_to_settle(watched)

    # Removal

    def remove_soon(self, ref: str) -> None:
        """Remove a container in the background; an empty id is nothing."""
        if ref:
            self.doomed.add(ref)
            self._tasks.start_soon(self.remove, ref)

    async def remove(self, ref: str) -> None:
        """Remove a container now, or when the Engine is back."""
        self.doomed.add(ref)
        try:
            await self._link.call(lambda engine: engine.remove(ref))
        except DriverError as error:
            log.warning("cannot remove a container yet", container=ref[:12], reason=error.detail)
        else:
            self.doomed.discard(ref)
