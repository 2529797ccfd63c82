"""The node's policy as it is in force: dispatch, executor and callbacks ask it, a reload replaces it."""

from collections.abc import Mapping

import structlog

from edgeorch import docker_options
from edgeorch.config import Loaded
from edgeorch.executor import container_socket
from edgeorch.executor.driver import Driver
from edgeorch.executor.native import NativeDriver
from edgeorch.model import Caller, Cap, ContainerService, Service, TaskSpec
from edgeorch.policy import Policy

log = structlog.get_logger()


class NodeRules:
    """``admission.Rules`` of a real node.

    Args:
        loaded: the settings.
        node: the node's name, for messages.
        drivers: by name; the one for native services knows whose user they run as.

    Raises:
        ConfigError: ``[policy]`` cannot be used.
    """

    def __init__(self, loaded: Loaded, *, node: str, drivers: Mapping[str, Driver]) -> None:
        self._node = node
        self._drivers = drivers
        self.follow(loaded)

    def follow(self, loaded: Loaded) -> None:
        """Take settings and the files that they name into force; what runs already goes on.

        Raises:
            ConfigError: they cannot be used; the old ones stay in force.
        """
        engine = container_socket.path_of(container_socket.resolve(loaded.config.docker.host))
        self._policy, warnings = Policy.load(loaded, node=self._node, engine_socket=engine)
        for warning in warnings:
            log.warning(warning)

    @property
    def option_files(self) -> bool:
        """Whether docker run options may read files of this node."""
        return self._policy.settings.option_files

    def check(self, spec: TaskSpec, service: Service, caller: Caller) -> None:
        """See ``admission.Rules``."""
        facts = None
        if isinstance(service, ContainerService):
            _, facts = docker_options.parse(service.options, service.image, service.args)
        native = self._drivers.get("native")
        other_user = isinstance(native, NativeDriver) and native.other_user
        self._policy.check(spec, service, caller, runner_is_other_user=other_user, container=facts)

    def check_tasks(self, caller: Caller, *, wanted: int, held: int) -> None:
        """See ``admission.Rules``."""
        self._policy.limits.check_tasks(caller, wanted=wanted, held=held)

    def check_callback(self, host: str, caller: Caller) -> None:
        """See ``admission.Rules``."""
        self._policy.check_callback(host, caller)

    def callback_refusal(self, host: str, address: str, *, loopback: bool) -> str:
        """Why a callback to a host must not go to this address of it; empty where it may."""
        return self._policy.targets.refusal(host, address, loopback=loopback)

    def cap(self, caller: Caller) -> Cap:
        """See ``admission.Rules``."""
        return self._policy.limits.cap(caller.role)

    def deadline_s(self, spec: TaskSpec, caller: Caller) -> float:
        """See ``admission.Rules``."""
        return self._policy.limits.deadline_s(spec, caller.role)
