"""The nursery tree of a node: what is started in which order, and how it all ends.

Services (store, drivers, membership, dispatch, executor) live in the outer nursery and are stopped last;
listeners live in the inner one and are stopped first. An exception that no part expects ends the node loudly;
the next start is the recovery.
"""

import faulthandler
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import structlog
import trio

from edgeorch import __version__, logs, metrics
from edgeorch.callbacks import Callbacks
from edgeorch.config import Config, Loaded
from edgeorch.dispatch.dispatch import Dispatch
from edgeorch.dispatch.handlers import add_handlers
from edgeorch.dispatch.outputs import Outputs
from edgeorch.dispatch.retention import Retention
from edgeorch.errors import EdgeorchError, StartError, StorageError
from edgeorch.executor.admission import FEATURES
from edgeorch.executor.container import ContainerDriver
from edgeorch.executor.driver import Driver
from edgeorch.executor.executor import Executor
from edgeorch.executor.native import NativeDriver
from edgeorch.executor.rules import NodeRules
from edgeorch.executor.slots import Slots
from edgeorch.health import Health, Work
from edgeorch.identity import Identity, load_identity
from edgeorch.membership import (
    AddressWatch,
    ExecutorLoad,
    Fleet,
    Machine,
    Membership,
    Sampler,
    SelfInfo,
    describe,
)
from edgeorch.membership.self_info import cpu_count
from edgeorch.model import NodeInfo
from edgeorch.output import Watcher
from edgeorch.reload import Reload
from edgeorch.rest.api import create_app
from edgeorch.rest.auth import Tokens
from edgeorch.rest.server import Server
from edgeorch.rest.steps import Steps
from edgeorch.seams import Seams
from edgeorch.store.sealing import Sealer
from edgeorch.store.sqlite import SqliteStore
from edgeorch.store.stall import StallWatch
from edgeorch.systemd import Notify
from edgeorch.this_node import ThisNode
from edgeorch.wire import Handlers
from edgeorch.wire.links import Links
from edgeorch.wire.listener import Listener
from edgeorch.wire.transport import Tls

log = structlog.get_logger()

REST_S = 5.0
"""Running requests get 3 s to end, and are cut within this time."""
STOP_S = 20.0
"""Everything that is still running this long after a stop was asked for is cut."""


@dataclass
class _Node:
    """The parts of one running node, for the signal handler, the status line and the metrics."""

    identity: Identity
    tokens: Tokens
    links: Links
    membership: Membership
    me: ThisNode
    executor: Executor
    dispatch: Dispatch
    callbacks: Callbacks
    retention: Retention
    watcher: Watcher
    store: SqliteStore
    server: Server
    listener: Listener
    health: Health
    reload: Reload
    started_at: float
    served: trio.Event = field(default_factory=trio.Event)
    """Set when the REST server has ended: every request is answered or cut."""

    async def serve(  # noqa: ASYNC128  the server calls started()
        self, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run the REST server."""
        await self.server.run(task_status=task_status)
        self.served.set()

    def numbers(self) -> Mapping[str, metrics.Numbers]:
        """For ``/metrics``."""

        def about_node() -> Mapping[str, Any]:
            return {"certificate_expires": self.identity.not_after, "start_time": self.started_at}

        return {
            "": about_node,
            "dispatch": self.dispatch.statistics,
            "executor": self.executor.statistics,
            "callbacks": self.callbacks.statistics,
            "store": self.store.statistics,
            "rest": self.server.statistics,
            "wire": lambda: {**self.listener.statistics(), **self.links.statistics()},
            "membership": self.membership.statistics,
        }


async def run_node(loaded: Loaded, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> int:
    """Run a node until SIGTERM or SIGINT; a second signal cuts what still winds down.

    Args:
        loaded: the settings.
        task_status: started with the node's id once it serves.

    Returns:
        0 after a stop that was asked for.

    Raises:
        ConfigError: the configuration or a key file cannot be used.
        StartError: a part cannot start; one sentence says which and why.
    """
    logs.set_up(loaded.config.log)
    faulthandler.enable()
    notify, seams = Notify(), Seams()
    identity = load_identity(loaded, wall=seams.wall)
    state_dir, run_dir = _folders(loaded)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        try:
            async with trio.open_nursery() as bottom:
                stopping = _Stop(signals, bottom.cancel_scope, notify)
                bottom.start_soon(stopping.listen)
                notify.status("starting: opening the database")
                store = SqliteStore(state_dir / "edgeorch.db", seams)
                await bottom.start(store.serve)
                sealer = await _sealer(store, state_dir)
                watch = StallWatch(
                    lambda: store.still_s, loaded.config.store.stall_limit_s, partial(_end_at_once, notify)
                )
                await bottom.start(watch.run)
                drivers: dict[str, Driver] = {}
                rules = NodeRules(loaded, node=identity.name, drivers=drivers)
                drivers |= _drivers(
                    loaded,
                    identity.node_id,
                    store.store_id,
                    state_dir,
                    run_dir,
                    option_files=lambda: rules.option_files,
                )
                for driver in drivers.values():
                    await bottom.start(driver.run)
                async with trio.open_nursery() as services:
                    node = _build(loaded, identity, store, sealer, drivers, rules, services, seams)
                    stopping.reload = node.reload
                    async with trio.open_nursery() as listeners:
                        await _start(node, services, listeners)
                        await services.start(node.health.run)
                        await services.start(notify.run, node.health.status)
                        notify.ready()
                        # What has been loaded by now is there to stay: no collection looks at it again.
                        gc.freeze()
                        node.membership.announce()
                        log.info("ready", node=identity.name, id=identity.node_id, version=__version__)
                        task_status.started(identity.node_id)
                        await stopping.wanted.wait()
                        node.health.stopping = True
                        notify.stopping("stopping")
                        await node.membership.say_goodbye()
                        await node.server.stop()
                        with trio.move_on_after(REST_S):
                            await node.served.wait()
                        listeners.cancel_scope.cancel()
                    services.cancel_scope.cancel()
                bottom.cancel_scope.cancel()
        except* EdgeorchError as group:
            raise _first(group) from None
    log.info("stopped")
    return 0


class _Stop:
    """Turns signals into a stop, a reload, or, the second time, a cut."""

    def __init__(self, signals: AsyncIterator[int], everything: trio.CancelScope, notify: Notify) -> None:
        self.wanted = trio.Event()
        self.reload: Callable[[], None] = lambda: None
        self._signals = signals
        self._everything = everything
        self._notify = notify

    async def listen(self) -> None:
        async for number in self._signals:
            if number == signal.SIGHUP:
                self._notify.reloading()
                self.reload()
                self._notify.ready()
            elif self.wanted.is_set():
                log.warning("stopping at once")
                self._everything.cancel()
            else:
                log.info("stopping", signal=signal.Signals(number).name)
                self.wanted.set()
                self._everything.deadline = trio.current_time() + STOP_S


def _build(  # noqa: PLR0917  the parts of a node, in the order in which they were started
    loaded: Loaded,
    identity: Identity,
    store: SqliteStore,
    sealer: Sealer,
    drivers: Mapping[str, Driver],
    rules: NodeRules,
    services: trio.Nursery,
    seams: Seams,
) -> _Node:
    """Make every part that needs the store and the drivers; nothing runs yet."""
    config = loaded.config
    state_dir = Path(config.node.state_dir)
    slots = Slots(slots_of(config))
    watch = AddressWatch(config.node)
    self_info = SelfInfo(_describe(loaded, identity, store, watch))

    def executor_load() -> ExecutorLoad:
        load = slots.load()
        return ExecutorLoad(load.slots, load.used, load.cpus, load.memory)

    sampler = Sampler(Machine(state_dir, lambda: watch.interfaces, seams.wall), executor_load, seams)
    me = ThisNode(self_info, sampler, drivers, state_dir / "node_state")
    handlers = Handlers()
    links = Links(
        Tls(identity),
        lambda: membership.hello(),  # noqa: PLW0108  membership needs links first
        handlers,
        max_links=config.wire.max_links,
        rng=seams.rng,
        clock=seams.boottime,
    )
    membership = Membership(
        config,
        self_info,
        links,
        handlers,
        revocations=identity,
        sampler=sampler,
        watch=watch,
        fleet=_fleet(identity),
        seams=seams,
    )

    def address_of(node_id: str) -> str:
        peer = membership.table.get(node_id)
        if peer is not None:
            return peer.address or next(iter(peer.info.addresses), "")
        return next(iter(watch.addresses), "127.0.0.1")

    callbacks = Callbacks(store, config.callbacks, seams, address_of, rules.callback_refusal)
    watcher = Watcher()
    outputs = Outputs([state_dir / "tasks", *_native_dirs(drivers)], watcher)
    dispatch = Dispatch(
        config,
        store=store,
        sealer=sealer,
        membership=membership,
        me=me,
        peers=links,
        notifier=callbacks,
        rules=rules,
        outputs=outputs,
        nursery=services,
        seams=seams,
    )
    executor = Executor(
        config.executor,
        output_max=config.output.max_bytes,
        tail_max=config.output.tail_bytes,
        lease_s=config.lease.lease_s,
        slots=slots,
        me=me,
        drivers=drivers,
        store=store,
        origins=dispatch.reporter,
        rules=rules,
        seams=seams,
    )
    dispatch.attach(executor)
    add_handlers(handlers, dispatch, executor)
    tokens = Tokens(loaded.resolve(config.api.tokens), config.api)
    tokens.on_refused = dispatch.audit.login_refused
    steps = Steps()
    app = create_app(
        dispatch,
        tokens,
        config.api,
        metrics=lambda: metrics.render(node.numbers()),
        wall=seams.wall,
        steps=steps,
    )
    listener = Listener(
        links, port=config.wire.port, listen=config.node.listen, networks=config.node.networks
    )
    server = Server(app, config.api, config.node, identity.api_context, steps)

    def work() -> Work:
        runs = [life.run for life in executor.lives().values()]
        running = [run.offer.name for run in runs if not run.state.terminal]
        return Work(running, len(dispatch.ledger.queue), len(runs) - len(running))

    health = Health(
        loaded,
        store=store,
        me=me,
        expires_at=lambda: identity.not_after,
        refused=lambda: identity.problem,
        peers=lambda: membership.snapshot().values(),
        work=work,
        score=lambda: dispatch.node("self").score.value,
        wall=seams.wall,
    )
    dispatch.checks = health.ready
    node = _Node(
        identity=identity,
        tokens=tokens,
        links=links,
        membership=membership,
        me=me,
        executor=executor,
        dispatch=dispatch,
        callbacks=callbacks,
        retention=Retention(config.store, dispatch.ledger, executor, outputs.roots),
        watcher=watcher,
        store=store,
        server=server,
        listener=listener,
        health=health,
        reload=Reload(
            loaded,
            identity=identity,
            read_tokens=tokens.reload,
            read_store_key=partial(sealer.reload, state_dir),
            recheck=lambda: membership.recheck(_fleet(identity)),
            self_info=self_info,
            membership=membership,
            rules=rules,
            health=health,
        ),
        started_at=seams.wall(),
    )
    return node


async def _start(node: _Node, services: trio.Nursery, listeners: trio.Nursery) -> None:
    """Start the parts; each is ready for the next one when it has started.

    Other nodes are heard only after the executor has taken up what runs here: asked before, it would deny it.
    """
    await node.me.sampler.refresh()
    await services.start(node.watcher.run)
    await services.start(node.links.run)
    await services.start(node.me.run)
    await services.start(node.callbacks.run)
    await node.dispatch.start(partial(services.start, node.executor.run))
    await services.start(node.dispatch.audit.run)
    await services.start(node.retention.run)
    await listeners.start(node.listener.run)
    await services.start(node.membership.run)
    await listeners.start(node.serve)


def _end_at_once(notify: Notify, why: str) -> NoReturn:
    """End with 1, for systemd to start the node again. A thread that hangs cannot be waited for."""
    notify.stopping(f"ended: {why}")
    log.critical("ending at once", reason=why)
    os._exit(1)


def _folders(loaded: Loaded) -> tuple[Path, Path]:
    """The state and runtime folders, made where they are missing."""
    made = []
    for key in ("state_dir", "run_dir"):
        path = Path(getattr(loaded.config.node, key))
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(
                f"cannot make the folder {path}: {error.strerror}",
                hint=f"make it, or choose another one as node.{key}",
            ) from None
        if not os.access(path, os.W_OK | os.X_OK):
            raise StartError(
                f"cannot write to the folder {path}", hint=f"check its owner, or change node.{key}"
            )
        made.append(path)
    return made[0], made[1]


async def _sealer(store: SqliteStore, state_dir: Path) -> Sealer:
    """The key for secrets in the store; what it does not open waits for the right key.

    Raises:
        ConfigError: the file of the key cannot be used.
    """
    sealer = Sealer.load(state_dir)
    for kept in await store.sealed():
        try:
            sealer.open(kept.task_id, kept.sealed)
        except StorageError as error:
            log.error("a task waits for the key of its secrets", task=kept.task_id, fix=error.hint)  # noqa: TRY400  all is said
    return sealer


def _drivers(
    loaded: Loaded,
    node_id: str,
    store_id: str,
    state_dir: Path,
    run_dir: Path,
    *,
    option_files: Callable[[], bool],
) -> dict[str, Driver]:
    config = loaded.config
    tasks_dir = state_dir / "tasks"
    drivers: dict[str, Driver] = {}
    if "container" in config.executor.drivers:
        drivers["container"] = ContainerDriver(
            config.docker.host,
            node_id=node_id,
            store_id=store_id,
            tasks_dir=tasks_dir,
            secrets_dir=run_dir / "container-secrets",
            option_files=option_files,
            followers=max(64, slots_of(config)),
        )
    if "native" in config.executor.drivers:
        socket = Path(config.runner.socket) if config.runner.socket else None
        drivers["native"] = NativeDriver(socket=socket, work_dir=tasks_dir, run_dir=run_dir)
    return drivers


def slots_of(config: Config) -> int:
    """How many attempts run here at a time."""
    return config.executor.slots or 2 * cpu_count()


def _native_dirs(drivers: Mapping[str, Driver]) -> list[Path]:
    """Where a runner of its own keeps its attempts' output."""
    native = drivers.get("native")
    return [native.work_dir] if isinstance(native, NativeDriver) else []


def _fleet(identity: Identity) -> Fleet:
    """Which fleet this is, by the CAs that it trusts now."""
    return Fleet(identity.fleet, ",".join(identity.ca_fingerprints))


def _describe(loaded: Loaded, identity: Identity, store: SqliteStore, watch: AddressWatch) -> NodeInfo:
    return describe(
        loaded,
        node_id=identity.node_id,
        name=identity.name,
        fleet=identity.fleet,
        store_id=store.store_id,
        boot=store.boot,
        addresses=watch.addresses,
        drivers={},
        features=FEATURES,
        cert_expires_at=identity.not_after,
    )


def _first(group: BaseExceptionGroup[EdgeorchError]) -> EdgeorchError:
    """One error of a group: a node that cannot start says one sentence."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
