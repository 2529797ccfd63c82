"""What a driver is: the way one kind of service is prepared, started, watched and ended."""

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
import trio

from edgeorch.model import Exit, Handle, Kept, Service
from edgeorch.secret import Secret

TURN_S = 1.0
"""An attempt that has a slot before it is free is given back after this: by then it is clear that what runs
takes longer than what ran before, and no more are given away like that."""


class Launch(Kept, frozen=True, kw_only=True):
    """Everything a driver needs to start one attempt."""

    key: str
    """``TASKID.NUMBER``."""
    name: str
    service: Service
    env: dict[str, str]
    """``EDGEORCH_*`` variables, added to the service's own."""
    cpus: float = 0.0
    memory: int = 0
    """Bytes; 0: no limit."""
    output_max: int
    """Bytes kept per stream."""
    lease_s: float | None = None
    """First lease; the driver's ``renew`` extends it. None: no lease."""
    secrets: dict[str, Secret] = msgspec.field(default_factory=dict)
    """Become files in memory that are gone when ``wait`` has returned."""
    most: int | None = None
    """Unless None: its turn comes once fewer services of the driver than this run. For one that queues."""


class NoTurnError(Exception):
    """The turn of a service has not come within ``TURN_S``; it was not started and will not be."""


class Available(Kept, frozen=True, kw_only=True):
    """Whether a driver works now: the version of what is behind it, or why not and what to do."""

    version: str = ""
    reason: str = ""
    hint: str = ""
    limits: tuple[str, ...] = ()
    """What limits a native service's resources: ``NodeInfo.limits``."""
    no_secrets: str = ""
    """Why services cannot be given secrets; empty where they can."""
    isolation: str = ""
    """What keeps native services apart: ``NodeInfo.task_isolation``."""
    queues: bool = False
    """Whether services can wait for their turn at the driver: no time is lost between two of them."""


Progress = Callable[[str], None]
"""Takes one short line for people (``pulling 40 %``); never blocks."""


class Driver(Protocol):
    """One kind of service. All methods are cancellable, and leave nothing half-done that ``destroy`` misses.

    A handle is enough to find the service again after a restart of the daemon: ``recover`` lists what is
    still there, and ``wait`` on a handle whose service has ended meanwhile returns its exit.
    """

    name: str

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled: connections, event streams. Started before anything else is called."""
        ...

    @property
    def available(self) -> Available:
        """Whether the driver works now; ``changed`` is set anew whenever this changes."""
        ...

    @property
    def changed(self) -> trio.Event:
        """Set when ``available`` changes; replaced by a new event each time."""
        ...

    async def prepare(self, launch: Launch, progress: Progress) -> None:
        """Fetch what is missing (an image).

        Raises:
            DriverError: with the reason, ``image_unavailable`` among them.
        """
        ...

    async def start(self, launch: Launch) -> Handle:
        """Start the service. Idempotent by ``launch.key``: a second call finds the first one's service.

        Raises:
            DriverError: ``no_program``, ``no_permission``, ``invalid_service``, ``driver_unavailable``, …
            NoTurnError: see there; only with ``Launch.most``.
        """
        ...

    async def wait(self, handle: Handle) -> Exit:
        """Wait for the end. ``Exit(cause="node_lost")`` where the end cannot be found out any more."""
        ...

    async def stop(self, handle: Handle, grace_s: float) -> None:
        """SIGTERM, wait ``grace_s``, SIGKILL of everything; returns when nothing is left running."""
        ...

    async def destroy(self, handle: Handle) -> None:
        """Remove what the driver keeps of an ended attempt (container, exit record), not its output."""
        ...

    async def recover(self) -> Mapping[str, Handle]:
        """Services of this node that are still known to the driver, running or ended, by key."""
        ...

    async def renew(self, keys: Mapping[str, float]) -> None:
        """Extend leases: key to seconds from now. Drivers that die with the daemon may ignore it."""
        ...
