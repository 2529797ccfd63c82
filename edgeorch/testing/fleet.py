"""A fleet in one Trio program: real dispatch and executor, everything around them in memory.

Nodes know each other from the start; who is alive is what the test says. Meant for MockClock.
"""

import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import trio
from cryptography.fernet import Fernet

from edgeorch.config import Config
from edgeorch.config import Executor as ExecutorSettings
from edgeorch.config import Policy as PolicySettings
from edgeorch.dispatch.dispatch import Dispatch
from edgeorch.dispatch.handlers import add_handlers
from edgeorch.dispatch.outputs import Outputs
from edgeorch.dispatch.requests import Submission
from edgeorch.errors import PolicyError
from edgeorch.executor.admission import FEATURES
from edgeorch.executor.executor import Executor
from edgeorch.executor.slots import Slots
from edgeorch.model import (
    Caller,
    Cap,
    ContainerFacts,
    NativeService,
    NodeInfo,
    Peer,
    PeerState,
    Sample,
    Service,
    Task,
    TaskSpec,
)
from edgeorch.output import Watcher
from edgeorch.policy import Policy
from edgeorch.seams import Seams
from edgeorch.store import LocalStore, TaskChange
from edgeorch.store.sealing import Sealer
from edgeorch.testing.drivers import ScriptedDriver, ScriptedHost
from edgeorch.testing.stores import MemoryStore
from edgeorch.testing.wire import Network, TwinPeers

ADMIN = Caller(token="test", role="admin")  # noqa: S106  a name, not a secret


class VirtualMe:
    """A node's own facts; a test may change any of them."""

    def __init__(self, info: NodeInfo, slots: Slots, *, cpu_busy: float = 0.1) -> None:
        self.info = info
        self.slots = slots
        self.cpu_busy = cpu_busy

    def sample(self) -> Sample:
        """What the node would measure now."""
        load = self.slots.load()
        return Sample(
            at=trio.current_time(),
            cpu_busy=self.cpu_busy,
            cpu_mhz=2000.0,
            cpus=self.info.cpus,
            load1=0.0,
            memory_total=self.info.memory,
            memory_available=self.info.memory,
            disk_free=1 << 40,
            slots=load.slots,
            slots_used=load.used,
            cpus_promised=load.cpus,
            memory_promised=load.memory,
        )

    def set_state(self, state: Literal["ready", "cordoned", "draining"]) -> None:
        """Drain, cordon, resume."""
        self.info = msgspec.structs.replace(self.info, state=state)


class VirtualMembership:
    """The other nodes, as the fleet says."""

    def __init__(self, fleet: "VirtualFleet", own: str) -> None:
        self._fleet = fleet
        self._own = own
        self.changed = trio.Event()
        self.told: dict[str, Sample] = {}
        """What came with answers, by node; ``snapshot`` needs none of it."""

    @property
    def states_changed(self) -> trio.Event:
        """Nothing but states ever changes here."""
        return self.changed

    def get(self, node_id: str) -> Peer | None:
        """One of them, or None."""
        return self.snapshot().get(node_id)

    def snapshot(self) -> Mapping[str, Peer]:
        """All other nodes with a sample of this moment."""
        return {
            node.id: Peer(
                info=node.me.info,
                state=self._fleet.state_of(self._own, node.id),
                since=0.0,
                sample=node.me.sample(),
                sample_at=trio.current_time(),
                rtt_s=0.0005,
                address=f"10.0.0.{index}",
            )
            for index, node in enumerate(self._fleet.nodes.values(), 1)
            if node.id != self._own
        }

    def sampled(self, node_id: str, sample: Sample) -> None:
        """Kept for tests to see."""
        self.told[node_id] = sample

    def forget(self, node_id: str) -> None:
        """Not remembered anyway."""

    def touch(self) -> None:
        """Something has changed."""
        self.changed.set()
        self.changed = trio.Event()


class Notes:
    """Remembers which callbacks would be sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, str]] = []

    def changes(self, task: Task, spec: TaskSpec, kind: str) -> Sequence[TaskChange]:
        """Remember; store nothing."""
        if spec.callback_url:
            self.sent.append((task.id, kind, str(task.state)))
        return ()

    def wake(self) -> None:
        """Nothing to deliver."""

    def take_back(self, changes: Sequence[TaskChange]) -> None:
        """Nothing was stored."""


class VirtualRules:
    """The policy of a node that runs native services as another user, or refuses them all.

    Attributes:
        policy: the real rules.
        refuse: a sentence: everything is refused with it.
    """

    def __init__(self, settings: PolicySettings, node: str) -> None:
        self.node = node
        self.policy = Policy(settings, node=node)
        self.refuse = ""

    def change(self, **settings: object) -> None:
        """As a reload does."""
        self.policy = Policy(msgspec.convert(settings, PolicySettings), node=self.node)

    def check(self, spec: TaskSpec, service: Service, caller: Caller) -> None:
        """See ``admission.Rules``."""
        if self.refuse:
            raise PolicyError(f"{self.refuse} ({spec.name}, {caller.role}, {type(service).__name__})")
        self.policy.check(spec, service, caller, runner_is_other_user=True, container=ContainerFacts())

    def check_tasks(self, caller: Caller, *, wanted: int, held: int) -> None:
        """See ``admission.Rules``."""
        self.policy.limits.check_tasks(caller, wanted=wanted, held=held)

    def check_callback(self, host: str, caller: Caller) -> None:
        """See ``admission.Rules``."""
        self.policy.check_callback(host, caller)

    def cap(self, caller: Caller) -> Cap:
        """See ``admission.Rules``."""
        return self.policy.limits.cap(caller.role)

    def deadline_s(self, spec: TaskSpec, caller: Caller) -> float:
        """See ``admission.Rules``."""
        return self.policy.limits.deadline_s(spec, caller.role)


class VirtualNode:
    """One node. ``crash`` and ``start`` keep its store and its host, as a real restart does."""

    def __init__(self, fleet: "VirtualFleet", name: str, *, slots: int, config: Config, folder: Path) -> None:
        self.fleet = fleet
        self.seams = fleet.seams
        self.name = name
        self.id = name.ljust(10, "0")
        self.config = config
        self.store: LocalStore = MemoryStore(fleet.seams, store_id=name)
        self.sealer = Sealer([Fernet.generate_key()])
        self.host = ScriptedHost(folder)
        self.folder = folder
        self.total = slots
        self.notes = Notes()
        self.rules = VirtualRules(config.policy, name)
        info = NodeInfo(
            id=self.id,
            name=name,
            fleet="virtual",
            version="0",
            arch="amd64",
            os="linux",
            cpus=4,
            memory=8 << 30,
            drivers={"native": "1"},
            features=FEATURES,
        )
        self.me = VirtualMe(info, Slots(slots))
        self.membership = VirtualMembership(fleet, self.id)
        self.scope = trio.CancelScope()
        self.up = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """One life of the daemon."""
        self.scope = trio.CancelScope()
        with self.scope:
            async with trio.open_nursery() as nursery:
                slots = Slots(self.total)
                peers = self.join(slots)
                driver = ScriptedDriver(self.host)
                await nursery.start(driver.run)
                store = self.open_store()
                self.dispatch = Dispatch(
                    self.config,
                    store=store,
                    sealer=self.sealer,
                    membership=self.membership,
                    me=self.me,
                    peers=peers,
                    notifier=self.notes,
                    rules=self.rules,
                    outputs=Outputs([self.folder], Watcher()),
                    nursery=nursery,
                    seams=self.seams,
                )
                self.executor = Executor(
                    ExecutorSettings(),
                    output_max=1 << 20,
                    tail_max=1024,
                    lease_s=self.config.lease.lease_s,
                    slots=slots,
                    me=self.me,
                    drivers={"native": driver},
                    store=store,
                    origins=self.dispatch.reporter,
                    rules=self.rules,
                    seams=self.seams,
                    read_tails=_read_tails,
                )
                self.dispatch.attach(self.executor)
                add_handlers(peers.handlers, self.dispatch, self.executor)
                await self.dispatch.start(partial(nursery.start, self.executor.run))
                await self.go_live(nursery)
                self.up = True
                self.fleet.touch()
                task_status.started()
        self.up = False

    def join(self, slots: Slots) -> TwinPeers:
        """Take this life's place on the network, before dispatch is made; ``me`` counts these slots."""
        self.me.slots = slots
        if self.id in self.fleet.network.nodes:
            self.fleet.network.restart(self.id)
        return self.fleet.network.peers(self.id)

    def open_store(self) -> LocalStore:
        """The store as this life sees it."""
        return self.store

    async def go_live(self, nursery: trio.Nursery) -> None:
        """Start what a node starts last; nothing where the fleet says who is alive."""

    def crash(self, *, host: bool = False) -> None:
        """The daemon is gone, with ``host`` everything that runs there too; others notice at once."""
        self.fleet.network.crash(self.id)
        self.scope.cancel()
        if host:
            self.host.crash()
        self.fleet.set_state(self.id, PeerState.DEAD)

    async def submit(self, *argv: str, caller: Caller = ADMIN, **fields: object) -> Task:
        """POST one native task here."""
        made = {"name": "task", "service": (NativeService(argv=argv),)} | fields
        spec = msgspec.convert(made, TaskSpec)
        (task,) = await self.dispatch.submit([Submission.of(spec, msgspec.json.encode(spec))], caller)
        return task


class VirtualFleet:
    """Nodes by name on one network."""

    def __init__(self, folder: Path, *, seed: int = 1, config: Config | None = None) -> None:
        self.rng = random.Random(seed)  # noqa: S311  chance that can be repeated
        self.seams = Seams(wall=lambda: 1e9 + trio.current_time(), boottime=trio.current_time, rng=self.rng)
        self.network = Network(self.rng)
        self.nodes: dict[str, VirtualNode] = {}
        self._folder = folder
        self._config = config or Config()
        self._states: dict[tuple[str, str], PeerState] = {}

    def add(self, name: str, *, slots: int = 4) -> VirtualNode:
        """A node that is not started yet."""
        folder = self._folder / name
        self.nodes[name] = node = VirtualNode(self, name, slots=slots, config=self._config, folder=folder)
        return node

    def state_of(self, seen_by: str, node_id: str) -> PeerState:
        """What one node believes of another."""
        up = any(node.up for node in self.nodes.values() if node.id == node_id)
        return self._states.get((seen_by, node_id), PeerState.ALIVE) if up else PeerState.DEAD

    def set_state(self, node_id: str, state: PeerState, *, seen_by: str | None = None) -> None:
        """All other nodes, or one, believe this now."""
        for node in self.nodes.values():
            if node.id != node_id and seen_by in (None, node.id):
                self._states[node.id, node_id] = state
        self.touch()

    def touch(self) -> None:
        """All memberships have changed."""
        for node in self.nodes.values():
            node.membership.touch()


async def _read_tails(paths: Sequence[str], limit: int) -> list[bytes]:
    """Read at once: a thread would let MockClock leap."""
    await trio.lowlevel.checkpoint()
    return [_end_of(Path(path), limit) for path in paths]


def _end_of(path: Path, limit: int) -> bytes:
    try:
        return path.read_bytes()[-limit:]
    except FileNotFoundError:
        return b""
