"""What this machine has to offer right now, measured by psutil in a thread of its own."""

import contextlib
import math
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import psutil
import structlog
import trio

from edgeorch.membership.cgroup import memory_limit, memory_used
from edgeorch.membership.self_info import cpu_count
from edgeorch.model import Sample
from edgeorch.scoring import cpus_wanted
from edgeorch.seams import Seams

log = structlog.get_logger()

SAMPLE_S = 2.0
SLOW_EVERY = 15
"""Temperature, disk and link speed change slowly and cost most: read with every fifteenth sample."""


class ExecutorLoad(NamedTuple):
    """What the executor has promised of this node: counts, CPUs, bytes, and attempts that wait."""

    slots: int
    slots_used: int = 0
    cpus_promised: float = 0.0
    memory_promised: int = 0
    queued: int = 0


class Probes(Protocol):
    """What is read of the machine; one call measures everything but the executor's numbers."""

    def measure(self) -> Sample:
        """Read the machine. Blocks for up to some milliseconds; called from one thread at a time."""
        ...


class Machine:
    """The real ``Probes``.

    Args:
        disk: folder whose file system counts for ``disk_free``.
        interfaces: called for the names of the interfaces whose link speed counts.
        wall: seconds since the epoch.
    """

    def __init__(
        self, disk: Path, interfaces: Callable[[], Sequence[str]], wall: Callable[[], float]
    ) -> None:
        self._disk = disk
        self._interfaces = interfaces
        self._wall = wall
        self._cpus = cpu_count()
        self._mhz = cpu_mhz()
        self._limit = memory_limit()
        self._before = psutil.cpu_times()
        self._busy = 0.0
        self._count = 0
        self._disk_free = 0
        self._celsius: float | None = None
        self._mbps = 0.0

    def measure(self) -> Sample:
        """One sample; the first one of a process knows no CPU usage yet and says 0."""
        if self._count % SLOW_EVERY == 0:
            self._disk_free = _disk_free(self._disk)
            self._celsius = hottest()
            self._mbps = _link_speed(self._interfaces())
        self._count += 1
        total, available = self._memory()
        return Sample(
            at=self._wall(),
            cpu_busy=self._cpu_busy(),
            cpu_mhz=self._mhz,
            cpus=self._cpus,
            load1=psutil.getloadavg()[0],
            memory_total=total,
            memory_available=available,
            disk_free=self._disk_free,
            temperature_c=self._celsius,
            slots=0,
            slots_used=0,
            bandwidth_mbps=self._mbps,
        )

    def _cpu_busy(self) -> float:
        """Busy share between this sample and the one before, without waiting for a second reading."""
        now, before = psutil.cpu_times(), self._before
        # guest and guest_nice are contained in user and nice.
        total = sum(now[:8]) - sum(before[:8])
        if total > 0:
            idle = now.idle + now.iowait - before.idle - before.iowait
            self._busy = min(max(1 - idle / total, 0.0), 1.0)
            self._before = now
        return self._busy

    def _memory(self) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        if self._limit is None or self._limit >= memory.total:
            return memory.total, memory.available
        return self._limit, max(min(memory.available, self._limit - memory_used()), 0)


def cpu_mhz(cpuinfo: Path = Path("/proc/cpuinfo")) -> float:
    """The CPU's highest frequency in MHz, the best that can be found out; 0 where nothing tells it.

    The governor's maximum, else the current frequency, else an ``x.yGHz`` word in the model name.
    """
    with (
        contextlib.suppress(OSError, NotImplementedError, RuntimeError, ValueError),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        # None where the kernel tells nothing, which the type hides.
        found: Any = psutil.cpu_freq()
        if found is not None and (found.max or found.current):
            return float(found.max or found.current)
    with contextlib.suppress(OSError):
        named = re.search(
            r"^model name.*?(\d+(?:\.\d+)?)\s?GHz", cpuinfo.read_text("utf-8", "replace"), re.MULTILINE
        )
        if named:
            return float(named[1]) * 1000
    return 0.0


def hottest() -> float | None:
    """The hottest sensor in °C, None where there is none that makes sense."""
    try:
        sensors: dict[str, list[Any]] = psutil.sensors_temperatures()
    except (OSError, AttributeError, ValueError):
        return None
    celsius = [entry.current for entries in sensors.values() for entry in entries]
    # Unconnected sensors report 0, -128 or 255.
    return max(
        (value for value in celsius if value and math.isfinite(value) and 0 < value < 150), default=None
    )


def _disk_free(folder: Path) -> int:
    try:
        return int(psutil.disk_usage(str(folder)).free)
    except OSError:
        return 0


def _link_speed(names: Sequence[str]) -> float:
    """Mbit/s of the fastest of these interfaces that is up, 0 where none tells."""
    try:
        stats = psutil.net_if_stats()
    except OSError:
        return 0.0
    return float(max((stats[name].speed for name in names if name in stats and stats[name].isup), default=0))


class Sampler:
    """Measures every ``SAMPLE_S`` seconds and keeps the newest sample.

    Args:
        machine: what measures.
        executor_load: the executor's numbers, cheap and without I/O.
        seams: randomness for the first offset, wall time for fresh samples.
    """

    def __init__(self, machine: Probes, executor_load: Callable[[], ExecutorLoad], seams: Seams) -> None:
        self._machine = machine
        self._executor_load = executor_load
        self._seams = seams
        self._limiter = trio.CapacityLimiter(1)
        self._latest: Sample | None = None
        self._then, self._used = 0.0, 0
        """Slots in use while the newest sample was measured: the mean of its two ends; and at the end."""
        self._said: tuple[Sample, ExecutorLoad, Sample] | None = None
        """A measurement, the executor's numbers, and the sample that was made of them."""
        self._last_ok = -math.inf
        self._failed = False

    def current(self) -> Sample | None:
        """The newest measurement with the executor's numbers as they are at this moment; no I/O."""
        latest, said = self._latest, self._said
        if latest is None:
            return None
        load = self._executor_load()
        if said is None or said[0] is not latest or said[1] != load:
            sample = msgspec.structs.replace(
                latest,
                cpus_wanted=cpus_wanted(latest.cpu_busy, latest.cpus, self._then, load.slots_used),
                slots=load.slots,
                slots_used=load.slots_used,
                cpus_promised=load.cpus_promised,
                memory_promised=load.memory_promised,
                queued=load.queued,
            )
            self._said = said = (latest, load, sample)
        return said[2]

    @property
    def last_ok(self) -> float:
        """Trio time of the newest measurement."""
        return self._last_ok

    async def refresh(self) -> None:
        """Measure now. A failing machine keeps its last sample, whose age then tells."""
        try:
            self._latest = await trio.to_thread.run_sync(self._machine.measure, limiter=self._limiter)
        except (OSError, psutil.Error, ValueError, RuntimeError) as error:
            if not self._failed:
                log.warning("cannot measure this machine", error=str(error))
            self._failed = True
            return
        self._failed = False
        self._last_ok = trio.current_time()
        used = self._executor_load().slots_used
        self._then, self._used = (self._used + used) / 2, used

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Measure until cancelled. Started once the first sample is there.

        The schedule is absolute with a random offset: a slow reading shifts nothing, and nodes that start
        together do not measure together.
        """
        await self.refresh()
        task_status.started()
        due = trio.current_time() + self._seams.rng.uniform(0.25, 1) * SAMPLE_S
        while True:
            await trio.sleep_until(due)
            await self.refresh()
            due += SAMPLE_S * max(1, math.ceil((trio.current_time() - due) / SAMPLE_S))
