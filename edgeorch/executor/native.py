"""The native driver: programs of the node without a shell, started by the runner (DESIGN §7)."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import structlog
import trio

from edgeorch.errors import DriverError, EdgeorchError, StartError
from edgeorch.executor.driver import TURN_S, Available, Launch, NoTurnError, Progress
from edgeorch.executor.runner_child import RunnerProcess, start_runner
from edgeorch.executor.runner_link import LinkLostError, NobodyListensError, RunnerLink
from edgeorch.model import Exit, Handle, NativeService
from edgeorch.runner import protocol

log = structlog.get_logger()

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 5.0
_UNIT_HINT = "see: systemctl status edgeorch-runner"
PATIENCE_S = 5.0
"""How long the start of the node waits for a runner that may be starting beside it."""


class NativeDriver:
    """Driver of ``NativeService``.

    Args:
        socket: the socket of a runner that its own unit has started; None: the runner is a child of this node
            with the node's user, ended when this driver is cancelled. One that a killed node has left behind
            is taken over with what it runs.
        work_dir: the attempts' folders; only for a child, another runner says itself where they are.
        run_dir: where a child's socket is made.
    """

    name = "native"

    def __init__(self, *, socket: Path | None, work_dir: Path, run_dir: Path) -> None:
        self._child = socket is None
        self._path = socket or run_dir / "runner.sock"
        self._work_dir = work_dir
        self._process: RunnerProcess | None = None
        self._welcome: protocol.Welcome | None = None
        self._link: RunnerLink | None = None
        self._linked = trio.Event()
        self._known: dict[str, Exit | None] = {}
        """Attempts of the runner; None while they run."""
        self._handles: dict[str, Handle] = {}
        self._watched: dict[str, trio.Event] = {}
        self._unwanted: set[str] = set()
        """What the runner shall forget when it is back, and what it is ending for that."""
        self._leaving: set[str] = set()
        """What it was told to forget, and may not have read yet."""
        self._available = Available(reason="the runner is not connected yet")
        self._changed = trio.Event()

    @property
    def available(self) -> Available:
        """Whether a runner is connected."""
        return self._available

    @property
    def changed(self) -> trio.Event:
        """Set when ``available`` changes; replaced by a new event each time."""
        return self._changed

    @property
    def other_user(self) -> bool:
        """Whether services run as another user than the node; False until a runner has said so."""
        return self._welcome is not None and self._welcome.uid != os.getuid()

    @property
    def work_dir(self) -> Path:
        """Where the runner keeps its attempts' folders."""
        return Path(self._welcome.work_dir) if self._welcome is not None else self._work_dir

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Keep a connection to the runner; started when it stands or cannot be had soon."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stay_connected)
                with trio.move_on_after(PATIENCE_S):
                    await self._linked.wait()
                task_status.started()
        finally:
            if self._process is not None:
                with trio.move_on_after(15, shield=True):
                    await self._process.stop()
                self._forget_process()
        raise AssertionError("unreachable")

    async def prepare(self, launch: Launch, progress: Progress) -> None:  # noqa: ARG002  nothing is fetched
        """Refuse what no system call would take.

        Raises:
            DriverError: ``invalid_service``.
        """
        _check(launch)

    async def start(self, launch: Launch) -> Handle:
        """Start the program, once per key, over a restart of the runner too.

        Raises:
            DriverError: ``no_program``, ``no_permission``, ``invalid_service``, ``driver_unavailable`` or
                ``failed``.
            NoTurnError: with ``launch.most``.
        """
        service = _check(launch)
        self._unwanted.discard(launch.key)
        if self._link is None:
            raise DriverError(self._available.reason, hint=self._available.hint, reason="driver_unavailable")

        def request(number: int) -> protocol.Start:
            return protocol.Start(
                id=number,
                key=launch.key,
                argv=service.argv,
                env={**service.env, **launch.env},
                output_max=launch.output_max,
                lease_s=launch.lease_s,
                cpus=launch.cpus,
                memory=launch.memory,
                secrets=launch.secrets,
                most=launch.most,
            )

        try:
            if launch.most is None:
                reply = await self._ask(request)
            else:
                reply = await self._ask_in_turn(launch.key, request)
        except protocol.FrameError as error:
            raise DriverError(f"argv and env: {error}", reason="invalid_service") from None
        except trio.Cancelled:
            self._drop(launch.key)
            raise
        if isinstance(reply, protocol.Failed):
            raise DriverError(reply.detail, hint=reply.hint, reason=reply.reason)
        if isinstance(reply, protocol.Done):
            raise NoTurnError
        if not isinstance(reply, protocol.Started):
            raise DriverError("the runner gave an answer to another question", reason="failed")
        self._known.setdefault(launch.key, None)
        return self._handle(launch.key, reply.folder)

    async def _ask_in_turn(self, key: str, build: Callable[[int], protocol.Request]) -> protocol.Reply:
        with trio.move_on_after(TURN_S):
            return await self._ask(build)
        return await self._ask(lambda number: protocol.Withdraw(id=number, key=key))

    async def wait(self, handle: Handle) -> Exit:
        """Wait for the end, over restarts of the runner."""
        while True:
            await self._link_up()
            key = handle.ref
            if key not in self._known:
                return _GONE
            end = self._known[key]
            if end is not None:
                return end
            await self._watched.setdefault(key, trio.Event()).wait()

    async def stop(self, handle: Handle, grace_s: float) -> None:
        """SIGTERM, ``grace_s``, SIGKILL for all that the attempt has started; returns when it is gone."""
        await self._ask(lambda number: protocol.Stop(id=number, key=handle.ref, grace_s=grace_s))

    async def destroy(self, handle: Handle) -> None:
        """Have exit and work folder removed; where the runner is away, as soon as it is back."""
        if self._link is None:
            self._unwanted.add(handle.ref)
            return
        if self._known.get(handle.ref) is None:
            await self._ask(lambda number: protocol.Forget(id=number, key=handle.ref))
        else:
            # It has ended, so nobody needs to wait: whatever is answered later says that this was read.
            self._leaving.add(handle.ref)
            self._link.post_later(protocol.Forget(id=protocol.UNASKED, key=handle.ref))
        self._known.pop(handle.ref, None)
        self._handles.pop(handle.ref, None)

    async def recover(self) -> Mapping[str, Handle]:
        """What the runner knows. Where it is away, ``wait`` on a stored handle asks it when it is back."""
        return dict(self._handles)

    async def renew(self, keys: Mapping[str, float]) -> None:
        """Extend leases. Where the runner is away they run on: it counts them itself."""
        if self._link is not None:
            self._link.post(protocol.Renew(leases=dict(keys)))

    async def _ask(self, build: Callable[[int], protocol.Request]) -> protocol.Reply:
        """Ask until there is an answer: every request may be repeated."""
        while True:
            link = await self._link_up()
            before = self._leaving.copy()
            try:
                answer = (await link.ask(build))[0]
            except LinkLostError:
                self._unlink(link)
            else:
                self._leaving -= before
                return answer

    async def _link_up(self) -> RunnerLink:
        while self._link is None:
            await self._linked.wait()
        return self._link

    def _unlink(self, link: RunnerLink) -> None:
        if self._link is link:
            self._link = None
            self._linked = trio.Event()
            self._unwanted |= self._leaving
            self._leaving.clear()

    def _drop(self, key: str) -> None:
        """End and forget an attempt for whose start nobody waits any more."""
        self._unwanted.add(key)
        if self._link is not None:
            self._link.post(protocol.Forget(id=protocol.UNASKED, key=key))

    async def _stay_connected(self) -> NoReturn:
        retry_s = FIRST_RETRY_S
        while True:
            began = trio.current_time()
            try:
                link = await self._connect()
                await self._serve(link)
                lost = EdgeorchError(link.lost)
            except LinkLostError as error:
                lost = EdgeorchError(str(error), hint="" if self._child else _UNIT_HINT)
            except StartError as error:
                lost = error
            self._set_available(Available(reason=lost.detail, hint=lost.hint))
            # A connection that stood for a while starts the series anew.
            if trio.current_time() - began > LAST_RETRY_S:
                retry_s = FIRST_RETRY_S
            await trio.sleep(retry_s)
            retry_s = min(retry_s * 2, LAST_RETRY_S)

    async def _connect(self) -> RunnerLink:
        try:
            return RunnerLink.connect(self._path, self._on_exited)
        except NobodyListensError:
            if not self._child:
                raise
        if self._process is not None:
            await self._process.stop()
            self._forget_process()
        self._process = await start_runner(self._path, self._work_dir)
        return RunnerLink.connect(self._path, self._on_exited)

    async def _serve(self, link: RunnerLink) -> None:
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await link.run()
                nursery.cancel_scope.cancel()

            nursery.start_soon(run)
            try:
                await self._greet(link)
            except LinkLostError:
                nursery.cancel_scope.cancel()
        self._unlink(link)

    async def _greet(self, link: RunnerLink) -> None:
        """Learn who the runner is and what it knows, then open the link for everybody."""
        welcome = await link.welcome()
        if self._child and (self._process is None or self._process.pid != welcome.pid):
            log.info("taking over the runner of an earlier node", pid=welcome.pid)
            self._forget_process()
            try:
                self._process = RunnerProcess(welcome.pid)
            except OSError as error:
                raise LinkLostError(f"the runner has gone: {error.strerror}") from None
        answers = await link.ask(lambda number: protocol.List(id=number))
        known = [each for part in answers if isinstance(part, protocol.Listed) for each in part.attempts]
        self._welcome = welcome
        self._known = {each.key: _exit(each.ended) if each.ended else None for each in known}
        self._handles = {each.key: self._handle(each.key, each.folder) for each in known}
        for key in self._unwanted:
            link.post(protocol.Forget(id=protocol.UNASKED, key=key))
            self._handles.pop(key, None)
        # Of those that still run the exit will be pushed, and is of no interest.
        self._unwanted = {key for key in self._unwanted if self._known.pop(key, _GONE) is None}
        for key in list(self._watched):
            if self._known.get(key, _GONE) is not None:
                self._watched.pop(key).set()
        self._set_available(
            Available(
                version=welcome.version,
                limits=welcome.limits,
                isolation=welcome.isolation,
                no_secrets=welcome.no_secrets,
                queues=welcome.queues,
            )
        )
        self._link = link
        self._linked.set()

    def _on_exited(self, message: protocol.Exited) -> None:
        if message.key in self._unwanted:
            self._unwanted.discard(message.key)
            return
        self._known[message.key] = _exit(message.ended)
        watched = self._watched.pop(message.key, None)
        if watched is not None:
            watched.set()

    def _handle(self, key: str, folder: str) -> Handle:
        handle = Handle(driver=self.name, ref=key, stdout=f"{folder}/stdout", stderr=f"{folder}/stderr")
        self._handles[key] = handle
        return handle

    def _set_available(self, available: Available) -> None:
        if available != self._available:
            if available.reason:
                log.warning("no runner of native services", reason=available.reason, hint=available.hint)
            else:
                log.info(
                    "runner of native services connected",
                    version=available.version,
                    limits=available.limits,
                    isolation=available.isolation,
                )
            self._available = available
            self._changed.set()
            self._changed = trio.Event()

    def _forget_process(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None


_GONE = Exit(cause="node_lost", reason="the runner does not know this attempt any more")


def _exit(ended: protocol.Ended) -> Exit:
    return Exit(
        exit_code=ended.exit_code,
        signal=ended.signal,
        cause=ended.cause,
        reason=ended.reason,
        silent=ended.silent,
    )


def _check(launch: Launch) -> NativeService:
    """Refuse what execve(2) cannot take."""
    service = launch.service
    if not isinstance(service, NativeService):
        raise DriverError(f"not a native service: {type(service).__name__}", reason="invalid_service")
    texts = {"argv": service.argv, "env": (*service.env, *service.env.values())}
    for where, values in texts.items():
        for value in values:
            if "\0" in value:
                raise DriverError(f"{where}: {value!r} holds a NUL character", reason="invalid_service")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise DriverError(
                    f"{where}: {value!r} is not valid Unicode", reason="invalid_service"
                ) from None
    for name in service.env:
        if not name or "=" in name:
            raise DriverError(f"env: {name!r} cannot name a variable", reason="invalid_service")
    return service
