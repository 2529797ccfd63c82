"""The driver that runs services as containers of a Docker Engine."""

import os
import random
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
import trio

from edgeorch.docker_options import parse
from edgeorch.errors import DockerOptionError, DriverError
from edgeorch.executor import container_body as body
from edgeorch.executor.container_link import EngineLink
from edgeorch.executor.container_secrets import ContainerSecrets
from edgeorch.executor.container_state import REMOVED, Creation, NameTakenError, Watched
from edgeorch.executor.container_watch import Watch
from edgeorch.executor.driver import Available, Launch, Progress
from edgeorch.model import ContainerService, Exit, Handle

if TYPE_CHECKING:
    from edgeorch.executor.container_engine import Engine, EngineStream

log = structlog.get_logger()

FOLLOWERS = 64
PULLS = 4
LOST_AFTER_S = 300.0
STRAYS_AFTER_S = 30.0
_OUTPUT_GRACE_S = 10.0
_KILL_S = 10.0
_MAX_OPTION_FILE = 1 << 20


class ContainerDriver:
    """Runs containers. Its containers go on while the daemon is away, and are found again by their labels.

    A container with a restart policy has ended when the Engine does not start it again. ``--stop-timeout``
    may shorten the node's grace time, not lengthen it. With a log driver that cannot be read back, what a
    container writes while the daemon is away is lost.

    Args:
        host: URL of the Engine; empty: ``DOCKER_HOST``, else the default socket.
        node_id: this node.
        store_id: this node's store; containers of another store are left alone.
        tasks_dir: output goes to ``tasks_dir/KEY/stdout`` and ``stderr``.
        secrets_dir: secrets go to ``secrets_dir/KEY/NAME``; must be in memory.
        option_files: whether options may read files of the node.
        followers: how many outputs are read at a time; each takes a thread, so give at least the slots.
        lost_after_s: an Engine away for so long counts its containers as lost.
        rng: jitter.
    """

    name = "container"

    def __init__(
        self,
        host: str,
        node_id: str,
        store_id: str,
        tasks_dir: Path,
        *,
        secrets_dir: Path | None = None,
        option_files: Callable[[], bool] = bool,
        followers: int = FOLLOWERS,
        lost_after_s: float = LOST_AFTER_S,
        rng: random.Random | None = None,
    ) -> None:
        self._node_id = node_id
        self._store_id = store_id
        self._tasks_dir = tasks_dir
        self._secrets = ContainerSecrets(secrets_dir, host)
        self._option_files = option_files
        self._lost_after_s = lost_after_s
        self._followers = trio.CapacityLimiter(followers)
        self._pulls = trio.CapacityLimiter(PULLS)
        self._labels = [f"{body.NODE}={node_id}", f"{body.STORE}={store_id}"]
        self._link = EngineLink(host, self._labels, rng or random.SystemRandom())
        self._watch = Watch(self._link, self._followers)
        self._blind = False
        """``recover`` was asked while there was no Engine."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Cancelling it stops no container."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch.run)
            link = partial(self._link.run, on_event=self._watch.on_event, on_up=self._on_up)
            await nursery.start(link)
            task_status.started()

    @property
    def available(self) -> Available:
        """Whether an Engine answers, its version, and whether containers can be given secrets."""
        return msgspec.structs.replace(self._link.available, no_secrets=self._secrets.missing)

    @property
    def changed(self) -> trio.Event:
        """Set when ``available`` changes; replaced by a new event each time."""
        return self._link.changed

    def statistics(self) -> dict[str, int]:
        """Counts for ``/metrics``."""
        return {
            "containers": len(self._watch),
            "outputs_followed": self._followers.borrowed_tokens,
            "outputs_waiting": self._followers.statistics().tasks_waiting,
            "containers_to_remove": len(self._watch.doomed),
        }

    async def prepare(self, launch: Launch, progress: Progress) -> None:
        """Check the options, and pull the image where it is absent.

        Raises:
            DriverError: ``invalid_service``, ``image_unavailable``, ``driver_unavailable``.
        """
        service = launch.service
        if not isinstance(service, ContainerService):
            raise DriverError("this is no container service", reason="invalid_service")
        try:
            parse(service.options, service.image, service.args)
        except DockerOptionError as error:
            raise DriverError(error.detail, hint=error.hint, reason="invalid_service") from error
        image = service.image
        if await self._link.call(lambda engine: engine.has_image(image)):
            return
        progress(f"pulling {image}")
        token = trio.lowlevel.current_trio_token()

        def say(line: str) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(progress, line)

        stream = await self._link.call(lambda engine: engine.open_pull(image), limiter=self._pulls)
        try:
            await self._link.call(lambda engine: engine.follow_pull(stream, image, say), limiter=self._pulls)
        finally:
            stream.close()
        progress(f"pulled {image}")

    async def start(self, launch: Launch) -> Handle:
        """Make the container, attach to its output, start it.

        Raises:
            DriverError: ``invalid_service``, ``image_unavailable``, ``no_program``, ``no_permission``,
                ``driver_unavailable`` or ``failed``.
        """
        known = self._watch.by_key(launch.key)
        if known is not None:
            return known.handle
        creation = Creation()
        try:
            ref, settings, stream = await self._link.call(partial(self._create, creation, launch))
        except BaseException:
            self._watch.remove_soon(creation.abandon())
            self._secrets.take_back(launch.key)
            raise
        if stream is None:
            return self._watch.adopt(self._handle(ref, launch.key)).handle
        watched = Watched(
            self._handle(ref, launch.key),
            key=launch.key,
            output_max=launch.output_max,
            tty=settings["Tty"],
            restarts=body.restarts(settings),
            starting=True,
        )
        self._watch.add(watched, stream)
        try:
            await self._link.call(lambda engine: engine.start(ref))
            if settings["StdinOnce"]:
                await self._link.call(lambda engine: engine.close_stdin(ref))
        except BaseException:
            self._watch.forget(ref)
            self._watch.remove_soon(ref)
            self._secrets.take_back(launch.key)
            raise
        self._watch.started(watched)
        return watched.handle

    def _create(
        self, creation: Creation, launch: Launch, engine: "Engine"
    ) -> "tuple[str, dict[str, Any], EngineStream | None]":
        """In a thread: id, body and output of the new container; no output where it runs already."""
        settings = body.body_for(
            launch,
            node_id=self._node_id,
            store_id=self._store_id,
            api_version=engine.api_version,
            read_file=_read_option_file if self._option_files() else _refuse_option_file,
        )
        try:
            (self._tasks_dir / launch.key).mkdir(parents=True, exist_ok=True, mode=0o750)
        except OSError as error:
            raise DriverError(f"cannot make the folder of the output: {error.strerror}") from error
        self._secrets.give(engine, launch, settings)
        name = body.name_of(launch.key)
        try:
            ref, stream = creation.run(engine, name, settings)
        except NameTakenError:
            found = engine.inspect(name)
            if found is None or not self._is_ours(found["Config"]["Labels"] or {}, launch.key):
                raise
            if found["State"]["Status"] != "created":
                return found["Id"], settings, None
            return found["Id"], settings, engine.attach(found["Id"])
        return ref, settings, stream

    def _is_ours(self, labels: Mapping[str, str], key: str) -> bool:
        wanted = {body.ATTEMPT: key, body.NODE: self._node_id, body.STORE: self._store_id}
        return wanted.items() <= labels.items()

    async def wait(self, handle: Handle) -> Exit:
        """Wait for the end and for the last of the output; see ``Driver.wait``."""
        watched = self._watch.adopt(handle)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up, watched)
            await watched.exited.wait()
            nursery.cancel_scope.cancel()
        if watched.copied is not None:
            with trio.move_on_after(_OUTPUT_GRACE_S):
                await watched.copied.wait()
        self._secrets.take_back_from(handle)
        return watched.exit or REMOVED

    async def _give_up(self, watched: Watched) -> None:
        """End the wait for a container whose Engine stays away."""
        while True:
            changed, since = self._link.changed, self._link.down_since
            if since is None:
                await changed.wait()
                continue
            with trio.move_on_at(since + self._lost_after_s):
                await changed.wait()
                continue
            reason = f"the Docker Engine has been away for {self._lost_after_s:g} s: {self.available.reason}"
            watched.finish(Exit(cause="node_lost", reason=reason))

    async def stop(self, handle: Handle, grace_s: float) -> None:
        """Send the image's stop signal, and SIGKILL after the grace time.

        Raises:
            DriverError: the Engine is away, or cannot end it.
        """
        ref = handle.ref
        watched = self._watch.adopt(handle)
        if watched.exited.is_set():
            return
        found = await self._link.call(lambda engine: engine.inspect(ref))
        if found is None:
            watched.finish(REMOVED)
            return
        signal = found["Config"].get("StopSignal") or "SIGTERM"
        own_grace = found["Config"].get("StopTimeout")
        await self._link.call(lambda engine: engine.kill(ref, signal))
        with trio.move_on_after(grace_s if own_grace is None else min(grace_s, own_grace)):
            await watched.exited.wait()
            return
        await self._link.call(lambda engine: engine.stop_now(ref))
        await self._watch.settle(watched)
        with trio.move_on_after(_KILL_S):
            await watched.exited.wait()
            return
        raise DriverError(f"the Docker Engine cannot end container {ref[:12]}")

    async def destroy(self, handle: Handle) -> None:
        """Remove the container; one that cannot be removed now is removed when the Engine is back."""
        self._watch.forget(handle.ref)
        self._secrets.take_back_from(handle)
        await self._watch.remove(handle.ref)

    async def recover(self) -> Mapping[str, Handle]:
        """Containers of this node and store, by key. Without an Engine nothing; see ``_end_strays``."""
        try:
            found = await self._list()
        except DriverError:
            self._blind = True
            return {}
        self._secrets.sweep(found.keys())
        return found

    async def renew(self, keys: Mapping[str, float]) -> None:
        """The Engine knows no leases: when the daemon is gone, containers go on until it is back."""

    async def _list(self) -> dict[str, Handle]:
        found = await self._link.call(lambda engine: engine.containers(self._labels))
        keys = {one["Id"]: one["Labels"].get(body.ATTEMPT, "") for one in found}
        return {key: self._handle(ref, key) for ref, key in keys.items() if key}

    def _handle(self, ref: str, key: str) -> Handle:
        folder = self._tasks_dir / key
        return Handle(driver=self.name, ref=ref, stdout=str(folder / "stdout"), stderr=str(folder / "stderr"))

    async def _on_up(self) -> None:
        await self._watch.catch_up()
        if self._blind:
            self._blind = False
            self._watch.soon(self._end_strays)

    async def _end_strays(self) -> None:
        """Remove what ``recover`` would have listed, had there been an Engine, and nobody waits for."""
        try:
            found = await self._list()
            self._secrets.sweep(found.keys())
            strays = [handle.ref for handle in found.values() if handle.ref not in self._watch]
            await trio.sleep(STRAYS_AFTER_S)
        except DriverError:
            self._blind = True
            return
        for ref in strays:
            if ref not in self._watch:
                log.warning("removing a container that no attempt speaks of", container=ref[:12])
                await self._watch.remove(ref)


def _refuse_option_file(path: str) -> bytes:
    raise DockerOptionError(
        f"policy.option_files is off, so {path} is not read", hint="pass the values themselves"
    )


def _read_option_file(path: str) -> bytes:
    """A regular file of at most a mebibyte; opening a pipe or device must not block."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(number, "rb") as file:
        facts = os.fstat(number)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MAX_OPTION_FILE:
            raise DockerOptionError(f"{path} is not a file of at most {_MAX_OPTION_FILE} bytes")
        return file.read(_MAX_OPTION_FILE)
