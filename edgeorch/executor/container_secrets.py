"""A container's secrets: files in the node's memory, mounted read-only at ``/run/secrets``."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeorch.errors import DriverError
from edgeorch.executor.container_socket import path_of, resolve
from edgeorch.executor.driver import Launch
from edgeorch.model import Handle
from edgeorch.secret import VARIABLE
from edgeorch.secret_files import SecretFiles

if TYPE_CHECKING:
    from edgeorch.executor.container_engine import Engine

TARGET = "/run/secrets"
_READS_ALL = "DAC_OVERRIDE"
"""The capability by which root in a container reads the file of another user; Docker gives it by default."""


class ContainerSecrets:
    """The secrets of one driver's containers.

    Args:
        folder: in memory, and nobody else's; None: there is none.
        host: URL of the Engine.

    Attributes:
        missing: why a container cannot be given secrets; empty where it can.
    """

    def __init__(self, folder: Path | None, host: str) -> None:
        self._files = SecretFiles(folder) if folder is not None else None
        self.missing = self._files.missing if self._files else "the driver has no folder in memory for them"
        if not path_of(resolve(host)):
            self.missing = "the Docker Engine may be on another machine (docker.host)"

    def give(self, engine: "Engine", launch: Launch, body: dict[str, Any]) -> None:
        """Write the files and mount them; blocks. The mounts are ours, so no policy is asked.

        Raises:
            DriverError: they cannot be written.
        """
        if not launch.secrets:
            return
        if self._files is None:
            raise DriverError(self.missing, reason="driver_unavailable")
        user = body["User"] or engine.user_of(body["Image"])
        mode = mode_for(user, body["HostConfig"], remapped=engine.remaps_users())
        try:
            folder = self._files.write(launch.key, launch.secrets, mode)
        except OSError as error:
            detail = f"cannot write the secrets: {error.strerror}"
            raise DriverError(detail, reason="driver_unavailable") from None
        body["Env"].append(f"{VARIABLE}={TARGET}")
        mounts = body["HostConfig"]["Mounts"] or []
        body["HostConfig"]["Mounts"] = [
            *mounts,
            *(
                {"Type": "bind", "Source": str(folder / name), "Target": f"{TARGET}/{name}", "ReadOnly": True}
                for name in launch.secrets
            ),
        ]

    def take_back(self, key: str) -> None:
        """The container has ended, or will not start."""
        if self._files is not None:
            self._files.remove(key)

    def take_back_from(self, handle: Handle) -> None:
        """The same by its handle."""
        self.take_back(Path(handle.stdout).parent.name)

    def sweep(self, keep: Collection[str]) -> None:
        """Remove what is left of containers that are not among these keys."""
        if self._files is not None:
            self._files.sweep(keep)


def mode_for(user: str, host: dict[str, Any], *, remapped: bool) -> int:
    """0600 where the container's user can read a file of the node's user, else 0444.

    The node may not give its file to another user. The folder above is closed to everybody on the host, so
    0444 is for those in the container alone.

    Args:
        user: of the container's process, as Docker takes it; empty: root.
        host: the ``HostConfig``.
        remapped: whether root in a container is another user on the host.
    """
    name = user.partition(":")[0] or "0"
    if remapped:
        return 0o444
    if name == str(os.geteuid()):
        return 0o600
    dropped = {cap.upper().removeprefix("CAP_") for cap in host["CapDrop"] or ()}
    added = {cap.upper().removeprefix("CAP_") for cap in host["CapAdd"] or ()}
    kept = not dropped & {_READS_ALL, "ALL"} or bool(added & {_READS_ALL, "ALL"})
    return 0o600 if name in ("0", "root") and (kept or os.geteuid() == 0) else 0o444
