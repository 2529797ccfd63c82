"""What this node says of itself, and the number that makes newer words win over older ones."""

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import psutil
import trio

from edgeorch import __version__
from edgeorch.config import Loaded
from edgeorch.membership.cgroup import cpu_limit, memory_limit
from edgeorch.model import NodeInfo

INCARNATIONS_PER_BOOT = 1 << 20
"""Incarnations start anew above all earlier ones at each start, so one number orders them for good."""
LARGEST_JUMP = 1 << 44
"""More starts than any node sees: a peer that claims more is lying."""

_ARCH = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "386",
    "i386": "386",
}


def architecture(machine: str) -> str:
    """The kernel's machine name as container images call it (``amd64``, ``arm64``, ``arm``, …)."""
    return _ARCH.get(machine, machine)


def cpu_count() -> int:
    """CPUs that this process may use: affinity and a container's quota respected."""
    limit = cpu_limit()
    usable = len(os.sched_getaffinity(0))
    return usable if limit is None else max(1, min(usable, int(limit + 0.5)))


def describe(
    loaded: Loaded,
    *,
    node_id: str,
    name: str,
    fleet: str,
    store_id: str,
    boot: int,
    addresses: Sequence[str],
    drivers: Mapping[str, str],
    features: Sequence[str] = (),
    cert_expires_at: float = 0.0,
) -> NodeInfo:
    """The node's facts at its start.

    Args:
        loaded: configuration; gives labels, ports and weight.
        node_id: from the node's certificate.
        name: from the node's certificate.
        fleet: the fleet's name.
        store_id: made once with the database, so that a node with a new database is noticed.
        boot: grows by one with each start of the node.
        addresses: where peers reach it.
        drivers: driver name to version, only those that work.
        features: what a spec may require.
        cert_expires_at: seconds since the epoch.
    """
    config = loaded.config
    total = psutil.virtual_memory().total
    return NodeInfo(
        id=node_id,
        name=name,
        fleet=fleet,
        version=__version__,
        features=tuple(features),
        arch=architecture(platform.machine()),
        os=platform.system().lower(),
        cpus=cpu_count(),
        memory=min(total, memory_limit() or total),
        drivers=dict(drivers),
        labels=dict(config.node.labels),
        addresses=tuple(addresses),
        api_port=config.api.port,
        wire_port=config.wire.port,
        weight=config.scoring.weight,
        store_id=store_id,
        boot=boot,
        incarnation=boot * INCARNATIONS_PER_BOOT,
        cert_expires_at=cert_expires_at,
    )


class SelfInfo:
    """The current ``NodeInfo`` of this node; every change raises the incarnation.

    Attributes:
        info: the facts as they are now.
        leaving: this node has said goodbye, so what others say of it is true.
        changed: set when they change, and replaced.
    """

    def __init__(self, info: NodeInfo) -> None:
        self.info = info
        self.leaving = False
        self.changed = trio.Event()

    def change(self, **fields: Any) -> NodeInfo:  # noqa: ANN401  any field of NodeInfo
        """Replace fields (``addresses``, ``drivers``, ``state``, ``labels``, …); no news changes nothing."""
        if all(getattr(self.info, name) == value for name, value in fields.items()):
            return self.info
        return self._replace(incarnation=self.info.incarnation + 1, **fields)

    def refute(self, incarnation: int) -> NodeInfo:
        """Somebody holds a word of this incarnation against us: go above it, within reason."""
        if self.leaving or not 0 <= incarnation - self.info.incarnation < LARGEST_JUMP:
            return self.info
        return self._replace(incarnation=incarnation + 1)

    def _replace(self, **fields: Any) -> NodeInfo:  # noqa: ANN401  any field of NodeInfo
        self.info = msgspec.structs.replace(self.info, **fields)
        before, self.changed = self.changed, trio.Event()
        before.set()
        return self.info
