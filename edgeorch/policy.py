"""What may run on this node, for whom. Closed by default; every refusal names the rule and its key.

Containers are judged by ``ContainerFacts``, what their options want from the host. Native services are
judged by ``policy.native``: ``any``, ``off``, or ``listed`` in the files that ``services`` reads.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

from edgeorch import config
from edgeorch.errors import PolicyError
from edgeorch.model import ContainerFacts, NativeService, Role, Service
from edgeorch.services import ListedService, load_services

__all__ = ["Policy", "load_services"]

ENGINE_SOCKETS = (
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
)
"""Whoever reaches one of these is root on the host."""
SYSTEM = "/etc"


class Policy:
    """The rules of one node."""

    def __init__(
        self,
        settings: config.Policy,
        listed: Sequence[ListedService] = (),
        *,
        node: str = "this node",
        engine_socket: str = "",
        resolve: Callable[[str], str] | None = None,
    ) -> None:
        """Make the rules.

        Args:
            settings: the ``[policy]`` section.
            listed: what ``services.load_services`` found.
            node: the node's name, for messages.
            engine_socket: the Docker socket that the node itself uses, where it is not a usual one.
            resolve: an absolute path without links and ``..``, as the host sees it now; None: asks the host.
        """
        self._settings = settings
        self._listed = tuple(listed)
        self._node = node
        self._sockets = (*filter(None, (engine_socket,)), *ENGINE_SOCKETS)
        self._resolve = resolve or _resolved

    def check(
        self,
        service: Service,
        *,
        name: str,
        role: Role,
        runner_is_other_user: bool,
        container: ContainerFacts | None = None,
    ) -> None:
        """Refuse a service that may not run here.

        Args:
            service: what to run.
            name: the task's name; listed services go by it.
            role: of the caller.
            runner_is_other_user: whether native services run as another user than the node.
            container: what a container wants from the host; needed for one.

        Raises:
            PolicyError: with the rule, the key and what to do.
            ValueError: a container without its facts.
        """
        if role not in {"submit", "admin"}:
            raise PolicyError(
                f"the role {role!r} may not run services", hint="use a token with the role submit or admin"
            )
        if isinstance(service, NativeService):
            self._check_native(service, name, role, runner_is_other_user=runner_is_other_user)
        elif container is None:
            raise ValueError("a container is judged by its facts")
        else:
            self._check_container(container)

    def native_rule(self, role: Role, *, runner_is_other_user: bool) -> config.NativeRule:
        """``policy.native`` for a role, with ``auto`` resolved: ``any``, ``listed`` or ``off``."""
        rule = self._settings.native
        if isinstance(rule, dict):
            # A role that the table leaves out gets the default.
            rule = rule.get("admin" if role == "admin" else "submit", "auto")
        if rule == "auto":
            return "any" if runner_is_other_user or role == "admin" else "listed"
        return rule

    def warnings(self) -> tuple[str, ...]:
        """What the settings give away, for the log at start and for ``edgeorch doctor``."""
        root = f"whoever may submit is root on {self._node}"
        said = [
            f"policy.host_paths lists {path}, which holds the system's own files: {root}"
            for path in self._settings.host_paths
            if self._covers(path, SYSTEM)
        ]
        if self._settings.privileged:
            said.append(f"policy.privileged is on: {root}")
        return tuple(said)

    def _check_native(
        self, service: NativeService, name: str, role: Role, *, runner_is_other_user: bool
    ) -> None:
        rule = self.native_rule(role, runner_is_other_user=runner_is_other_user)
        if rule == "off":
            raise self._refusal(f"policy.native is off for the role {role!r}", "change policy.native")
        if rule == "any":
            return
        same_name = [listed for listed in self._listed if listed.name == name]
        if not same_name:
            raise self._refusal(
                f"policy.native is listed for the role {role!r}, and no service {name!r} is listed",
                f"add {name}.toml to policy.services, or set policy.native",
            )
        reasons = [listed.refusal(service.argv, service.env) for listed in same_name]
        if all(reasons):
            raise self._refusal(
                f"policy.native is listed for the role {role!r}, and {reasons[0]}",
                f"change {same_name[0].source}, or send what it lists",
            )

    def _check_container(self, facts: ContainerFacts) -> None:
        if not self._settings.privileged:
            asked = next(self._beyond(facts), None)
            if asked:
                raise self._refusal(
                    f"policy.privileged is off, and the container asks for {asked}",
                    "leave it out, or set policy.privileged = true",
                )
        for path in facts.binds:
            if not self._allows_host_path(path):
                raise self._refusal(f"policy.host_paths does not list {path}", "add it")
        if facts.option_files and not self._settings.option_files:
            raise self._refusal(
                f"policy.option_files is off, and an option reads the node's file {facts.option_files[0]}",
                "pass the values themselves, or set policy.option_files = true",
            )

    def _allows_host_path(self, path: str) -> bool:
        """Whether a listed folder covers the path.

        The Engine shortens ``..`` by text before the kernel follows links, the kernel does it after. Both
        readings must be covered. A container that can write below a listed folder could still swap a link
        between this look and the mount; the README says so where it explains ``host_paths``.
        """
        if not path.startswith("/") or "\0" in path:
            return False
        readings = (path, os.path.normpath(path))
        return all(
            any(self._covers(listed, reading) for listed in self._settings.host_paths) for reading in readings
        )

    def _beyond(self, facts: ContainerFacts) -> Iterator[str]:
        """What ``policy.privileged`` guards, in words."""
        if facts.privileged:
            yield "--privileged"
        yield from facts.namespaces
        yield from (f"the capability {name}" for name in facts.capabilities)
        yield from (f"the device {name}" for name in facts.devices)
        yield from (f"the security option {name}" for name in facts.security_opts)
        yield from facts.other
        for path in facts.binds:
            socket = next((socket for socket in self._sockets if self._reaches(path, socket)), None)
            if socket:
                yield f"{path}, through which it reaches the Docker socket {socket}"

    def _reaches(self, path: str, socket: str) -> bool:
        """Whether a mount of the path holds the socket, by its text or by where its links lead."""
        readings = {path, os.path.normpath(path)}
        written = any(PurePosixPath(socket).is_relative_to(reading) for reading in readings)
        return written or any(self._covers(reading, socket) for reading in readings)

    def _covers(self, listed: str, path: str) -> bool:
        try:
            return PurePosixPath(self._resolve(path)).is_relative_to(self._resolve(listed))
        except OSError:
            return False

    def _refusal(self, detail: str, what: str) -> PolicyError:
        return PolicyError(detail, hint=f"{what} in edgeorch.toml on {self._node}")


def _resolved(path: str) -> str:
    """The path without links; what does not exist yet stays as it is written.

    Raises:
        OSError: this node may not look at it, so it cannot say where the path leads.
    """
    try:
        return os.path.realpath(path, strict=True)
    except FileNotFoundError:
        return os.path.realpath(path)
