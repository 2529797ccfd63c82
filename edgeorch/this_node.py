"""What this node is at the moment: facts, measurements, and whether it takes work."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

import structlog
import trio

from edgeorch import files
from edgeorch.errors import StartError, StorageError
from edgeorch.executor.driver import Available, Driver
from edgeorch.membership import Sampler, SelfInfo
from edgeorch.model import NodeInfo, Sample

log = structlog.get_logger()

State: TypeAlias = Literal["ready", "cordoned", "draining"]


class ThisNode:
    """Joins what membership says of this node with what its drivers can do.

    Args:
        self_info: told to the others.
        sampler: measures.
        drivers: by name.
        path: file that keeps ``cordoned`` and ``draining`` over a restart.
    """

    def __init__(
        self, self_info: SelfInfo, sampler: Sampler, drivers: Mapping[str, Driver], path: Path
    ) -> None:
        self.self_info = self_info
        self.sampler = sampler
        self.drivers = drivers
        self._path = path
        state = read_state(path)
        if state != "ready":
            log.warning("this node takes no work", state=state, next="edgeorch resume")
        self_info.change(state=state, **self._working())

    @property
    def info(self) -> NodeInfo:
        """The facts as they are now."""
        return self.self_info.info

    def sample(self) -> Sample:
        """The newest measurements with the present load."""
        sample = self.sampler.current()
        if sample is None:
            raise StartError("nothing was measured yet")
        return sample

    def set_state(self, state: State) -> None:
        """Take offers or not; told to the others with the next probe."""
        self.self_info.change(state=state)
        log.info("the node's state was changed", state=state)
        try:
            files.write(self._path, state.encode(), 0o600)
        except StorageError as error:
            log.warning("the state will not survive a restart", reason=str(error))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Keep the list of working drivers true."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            for driver in self.drivers.values():
                nursery.start_soon(self._follow, driver)
            await trio.sleep_forever()  # a node may have no driver at all
        raise AssertionError("unreachable")

    def problems(self) -> list[str]:
        """What does not work here that is meant to, in short sentences."""
        return [
            f"{name}: {driver.available.reason}"
            for name, driver in self.drivers.items()
            if driver.available.reason
        ]

    async def _follow(self, driver: Driver) -> None:
        while True:
            changed = driver.changed
            self.self_info.change(**self._working())
            await changed.wait()
            available = driver.available
            log.info("a driver changed", driver=driver.name, version=available.version, why=available.reason)

    def _working(self) -> dict[str, Any]:
        """What the drivers that work now add to the facts."""
        working = {
            name: driver.available for name, driver in self.drivers.items() if not driver.available.reason
        }
        native = working.get("native", Available())
        return {
            "drivers": {name: available.version for name, available in working.items()},
            "limits": native.limits,
            "task_isolation": native.isolation,
        }


def read_state(path: Path) -> State:
    """The kept state; ``ready`` where nothing is kept."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return "ready"
    return "draining" if text == "draining" else "cordoned" if text == "cordoned" else "ready"
