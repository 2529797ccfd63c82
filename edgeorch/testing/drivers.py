"""A driver's twin in memory: services are tiny scripts in Trio's time, so MockClock drives them."""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NoReturn

import msgspec
import trio

from edgeorch.errors import DriverError
from edgeorch.executor.driver import TURN_S, Available, Launch, NoTurnError, Progress
from edgeorch.model import ContainerService, Exit, Handle
from edgeorch.runner.capped import CappedFile
from edgeorch.secret import Secret

_GONE = Exit(cause="node_lost", reason="the host does not know this attempt any more")
_ARGUMENTS = {
    "true": 0,
    "false": 0,
    "sleep": 1,
    "print": 1,
    "print-error": 1,
    "exit": 1,
    "signal": 1,
    "oom": 0,
    "hang": 0,
    "ignore-term": 0,
    "fail-start": 1,
}


@dataclass
class _Service:
    handle: Handle
    launch: Launch
    steps: Sequence[tuple[str, ...]]
    files: Mapping[str, CappedFile]
    """By the step that writes to it."""
    lease_until: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    deaf: bool = False
    """Whether it ignores SIGTERM."""
    fate: Exit | None = None
    """What ends it from outside."""
    end: Exit | None = None
    ended: trio.Event = field(default_factory=trio.Event)


class ScriptedHost:
    """What outlives a daemon: running services, exits, output. Share one between a driver and its successor.

    Args:
        folder: gets ``KEY/stdout`` and ``KEY/stderr``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services: dict[str, _Service] = {}
        self.secrets: dict[str, Mapping[str, Secret]] = {}
        """What running services have been given, by key."""
        self._nursery: trio.Nursery | None = None
        self._line: list[str] = []
        """Keys that wait for their turn."""
        self._moved = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Let services live until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
        raise AssertionError("unreachable")

    async def turn(self, driver: str, key: str, most: int) -> None:
        """Wait until fewer services of a driver run, and nobody waits who came before.

        Raises:
            NoTurnError: they did not in time.
        """
        self._line.append(key)
        try:
            with trio.move_on_after(TURN_S):
                while self._line[0] != key or self._running(driver) >= most:
                    await self._moved.wait()
                return
            raise NoTurnError
        finally:
            self._line.remove(key)
            self._move()

    def _running(self, driver: str) -> int:
        return sum(one.end is None and one.handle.driver == driver for one in self.services.values())

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    def begin(self, driver: str, launch: Launch, steps: Sequence[tuple[str, ...]]) -> Handle:
        """Start a service; a known key is left as it is."""
        known = self.services.get(launch.key)
        if known is not None:
            return known.handle
        if self._nursery is None:
            raise DriverError("the scripted host does not run", reason="driver_unavailable")
        folder = self.folder / launch.key
        folder.mkdir(parents=True, exist_ok=True)
        handle = Handle(
            driver=driver, ref=launch.key, stdout=str(folder / "stdout"), stderr=str(folder / "stderr")
        )
        until = float("inf") if launch.lease_s is None else trio.current_time() + launch.lease_s
        files = {
            "print": CappedFile(folder / "stdout", launch.output_max),
            "print-error": CappedFile(folder / "stderr", launch.output_max),
        }
        if launch.secrets:
            self.secrets[launch.key] = launch.secrets
        launch = msgspec.structs.replace(launch, secrets={})
        service = self.services[launch.key] = _Service(handle, launch, steps, files, until)
        self._nursery.start_soon(self._live, service)
        return handle

    def end(self, key: str, fate: Exit) -> None:
        """End a running service from outside, as SIGKILL does."""
        service = self.services.get(key)
        if service is not None and service.end is None:
            service.fate = service.fate or fate
            service.scope.cancel()

    def crash(self) -> None:
        """What a crash of the runner does: all that runs is lost, ended services stay known."""
        for key in self.services:
            self.end(key, Exit(cause="node_lost", reason="the runner that ran it has died"))

    async def _live(self, service: _Service) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_lease, service)
            end = Exit(exit_code=0)
            with service.scope:
                end = await _play(service)
            for file in service.files.values():
                file.close()
            end = service.fate if service.scope.cancelled_caught and service.fate else end
            silent = not any(file.received for file in service.files.values())
            service.end = msgspec.structs.replace(end, silent=silent)
            self.secrets.pop(service.launch.key, None)
            service.ended.set()
            self._move()
            nursery.cancel_scope.cancel()

    async def _watch_lease(self, service: _Service) -> None:
        while service.lease_until > trio.current_time():  # noqa: ASYNC110  it may have grown meanwhile
            await trio.sleep_until(service.lease_until)
        reason = "not heard from the task's origin for the time of its lease"
        self.end(service.handle.ref, Exit(signal=signal.SIGTERM, cause="lease_expired", reason=reason))


class ScriptedDriver:
    """A ``Driver`` whose services are scripts: ``argv``, or a container's ``args``, is a list of steps.

    Steps are separated by ``;``: ``sleep SECONDS``, ``print TEXT``, ``print-error TEXT``, ``exit CODE``,
    ``signal NUMBER``, ``oom``, ``true``, ``false``, ``ignore-term``, ``hang`` (until SIGKILL), and
    ``fail-start REASON``, which makes ``start`` raise that DriverError. Any other word is a program that does
    not exist.

    Args:
        host: where services live.
        name: ``native`` or ``container``.
        missing_images: images for which ``prepare`` raises ``image_unavailable``.
    """

    def __init__(
        self, host: ScriptedHost, *, name: str = "native", missing_images: frozenset[str] = frozenset()
    ) -> None:
        self.name = name
        self.host = host
        self.started: list[str] = []
        """Every key for which ``start`` was called, in order."""
        self._missing_images = missing_images
        self._available = Available(version="scripted", queues=True)
        self._changed = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Serve until cancelled; the host's services go on."""
        task_status.started()
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    @property
    def available(self) -> Available:
        """What ``set_available`` said last."""
        return self._available

    @property
    def changed(self) -> trio.Event:
        """Set when ``available`` changes; replaced by a new event each time."""
        return self._changed

    def set_available(self, available: Available) -> None:
        """Let the driver fail or work again; one with a reason refuses to start."""
        self._available = available
        self._changed.set()
        self._changed = trio.Event()

    async def prepare(self, launch: Launch, progress: Progress) -> None:
        """Pretend to pull a container's image."""
        await trio.lowlevel.checkpoint()
        if isinstance(launch.service, ContainerService):
            progress(f"pulling {launch.service.image}")
            if launch.service.image in self._missing_images:
                raise DriverError(f"no image {launch.service.image}", reason="image_unavailable")

    async def start(self, launch: Launch) -> Handle:
        """Start the script.

        Raises:
            DriverError: what ``fail-start`` says, ``no_program``, ``invalid_service`` or
                ``driver_unavailable``.
            NoTurnError: with ``launch.most``.
        """
        await trio.lowlevel.checkpoint()
        self.started.append(launch.key)
        if self._available.reason:
            raise DriverError(self._available.reason, hint=self._available.hint, reason="driver_unavailable")
        service = launch.service
        words = service.args if isinstance(service, ContainerService) else service.argv
        if launch.most is not None:
            await self.host.turn(self.name, launch.key, launch.most)
        return self.host.begin(self.name, launch, _steps(words))

    async def wait(self, handle: Handle) -> Exit:
        """Wait for the end of the script."""
        await trio.lowlevel.checkpoint()
        service = self.host.services.get(handle.ref)
        if service is None:
            return _GONE
        await service.ended.wait()
        return service.end or _GONE

    async def stop(self, handle: Handle, grace_s: float) -> None:
        """SIGTERM, which a deaf script does not hear, then SIGKILL."""
        await trio.lowlevel.checkpoint()
        service = self.host.services.get(handle.ref)
        if service is None:
            return
        if not service.deaf:
            self.host.end(handle.ref, _killed(signal.SIGTERM))
        with trio.move_on_after(grace_s):
            await service.ended.wait()
        self.host.end(handle.ref, _killed(signal.SIGKILL))
        await service.ended.wait()

    async def destroy(self, handle: Handle) -> None:
        """Forget the service, ending it if it runs."""
        await self.stop(handle, 0)
        self.host.services.pop(handle.ref, None)

    async def recover(self) -> Mapping[str, Handle]:
        """What lives on the host under this driver's name."""
        await trio.lowlevel.checkpoint()
        services = self.host.services
        return {key: one.handle for key, one in services.items() if one.handle.driver == self.name}

    async def renew(self, keys: Mapping[str, float]) -> None:
        """Extend leases."""
        await trio.lowlevel.checkpoint()
        for key, lease_s in keys.items():
            service = self.host.services.get(key)
            if service is not None and service.launch.lease_s is not None:
                service.lease_until = trio.current_time() + lease_s


def _steps(words: Sequence[str]) -> list[tuple[str, ...]]:
    """The steps of a script.

    Raises:
        DriverError: a step that does not exist is a missing program, as a real driver would say.
    """
    steps = [tuple(group) for end, group in groupby(words, ";".__eq__) if not end]
    for name, *arguments in steps:
        if name not in _ARGUMENTS:
            raise DriverError(f"{name}: no such program", reason="no_program")
        if len(arguments) != _ARGUMENTS[name]:
            raise DriverError(f"{name}: takes {_ARGUMENTS[name]} arguments", reason="invalid_service")
        if name == "fail-start":
            raise DriverError("the script fails at its start", reason=arguments[0])
    return steps


async def _play(service: _Service) -> Exit:
    ends: dict[str, Callable[[str], Exit]] = {
        "exit": lambda text: _exited(int(text)),
        "signal": lambda text: _killed(signal.Signals(int(text))),
        "false": lambda _: _exited(1),
        "oom": lambda _: Exit(signal=signal.SIGKILL, cause="oom", reason="out of memory"),
    }
    await trio.lowlevel.checkpoint()
    for name, *arguments in service.steps:
        if name in ends:
            return ends[name](*arguments or [""])
        if name in service.files:
            service.files[name].write(f"{arguments[0]}\n".encode())
        elif name == "sleep":
            await trio.sleep(float(arguments[0]))
        elif name in ("ignore-term", "hang"):
            service.deaf = True
            if name == "hang":
                await trio.sleep_forever()
    return Exit(exit_code=0)


def _exited(code: int) -> Exit:
    if code == 0:
        return Exit(exit_code=0)
    return Exit(exit_code=code, cause="failed", reason=f"exited with code {code}")


def _killed(number: signal.Signals) -> Exit:
    return Exit(signal=number, cause="failed", reason=f"killed by {number.name}")
