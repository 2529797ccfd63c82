"""The rules of one node.

Containers are judged by ``ContainerFacts``, what their options want from the host. Native services are
judged by ``policy.native``: ``any``, ``off``, or ``listed`` in the files that ``services`` reads.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from edgeorch import config
from edgeorch.errors import ConfigError, PolicyError
from edgeorch.model import Caller, ContainerFacts, NativeService, Service, TaskSpec
from edgeorch.policy import callback_targets
from edgeorch.policy.callback_targets import CallbackTargets
from edgeorch.policy.containers import ContainerRules
from edgeorch.policy.images import Images, load_images
from edgeorch.policy.limits import Limits
from edgeorch.policy.native import NativeRules
from edgeorch.policy.paths import ENGINE_SOCKETS, HostPaths, resolved
from edgeorch.services import ListedService, load_services


class Policy:
    """What may run here, for whom.

    Args:
        settings: the ``[policy]`` section.
        listed: what ``services.load_services`` found.
        images: what ``images.load_images`` found; None: the patterns of ``policy.images`` alone.
        node: the node's name, for messages.
        engine_socket: the Docker socket that the node itself uses, where it is not a usual one.
        resolve: an absolute path without links and ``..``, as the host sees it now; None: asks the host.
    """

    def __init__(
        self,
        settings: config.Policy,
        listed: Sequence[ListedService] = (),
        *,
        images: Images | None = None,
        node: str = "this node",
        engine_socket: str = "",
        resolve: Callable[[str], str] | None = None,
    ) -> None:
        self.settings = settings
        self._node = node
        sockets = (*filter(None, (engine_socket,)), *ENGINE_SOCKETS)
        self._native = NativeRules(settings, listed, self._refusal)
        self.limits = Limits(settings, self._refusal)
        self.targets = _targets(settings.callbacks)
        self._containers = ContainerRules(
            settings,
            images or load_images(settings.images)[0],
            HostPaths(settings.host_paths, sockets, resolve or resolved),
            self._refusal,
        )

    @classmethod
    def load(cls, loaded: config.Loaded, *, node: str, engine_socket: str) -> tuple[Self, tuple[str, ...]]:
        """The policy that the settings and the files that they name describe.

        Returns:
            The policy, and sentences for the log: files that cannot be used, and what the settings give away.
        """
        settings = loaded.config.policy
        listed, unusable = load_services(loaded.resolve(settings.services), Path(settings.apps))
        images, unread = load_images(settings.images)
        policy = cls(settings, listed, images=images, node=node, engine_socket=engine_socket)
        return policy, (*unusable, *unread, *policy.warnings())

    def check(
        self,
        spec: TaskSpec,
        service: Service,
        caller: Caller,
        *,
        runner_is_other_user: bool,
        container: ContainerFacts | None = None,
    ) -> None:
        """Refuse a service that may not run here.

        Args:
            spec: the task.
            service: one of its alternatives.
            caller: who asks.
            runner_is_other_user: whether native services run as another user than the node.
            container: what a container wants from the host; needed for one.

        Raises:
            PolicyError: with the rule, the key and what to do.
            ValueError: a container without its facts.
        """
        if caller.role not in {"submit", "admin"}:
            raise PolicyError(
                f"the role {caller.role!r} may not run services",
                hint="use a token with the role submit or admin",
            )
        if isinstance(service, NativeService):
            self._native.check(service, spec, caller, runner_is_other_user=runner_is_other_user)
        elif container is None:
            raise ValueError("a container is judged by its facts")
        else:
            self._containers.check(service.image, container)
        self.limits.check(spec, caller.role, container)

    def check_callback(self, host: str, caller: Caller) -> None:
        """Refuse a callback as far as its URL alone tells; the address is checked when it is delivered.

        Raises:
            PolicyError: with the key and what to do.
        """
        if why := self.targets.refusal_at_the_door(host, loopback=caller.loopback):
            raise self._refusal(callback_targets.KEY, why, "give another address, or add it to the list")

    def warnings(self) -> tuple[str, ...]:
        """What the settings give away, for the log at start and at reload."""
        return tuple(
            f"{said}: whoever may submit is root on {self._node}" for said in self._containers.warnings()
        )

    def _refusal(self, key: str, detail: str, what: str, *, rule: str = "") -> PolicyError:
        hint = f"{what} in edgeorch.toml on {self._node}"
        return PolicyError(detail, hint=hint, key=key, rule=rule)


def _targets(entries: Sequence[str]) -> CallbackTargets:
    try:
        return CallbackTargets(entries)
    except ValueError as error:
        raise ConfigError(f"{callback_targets.KEY}: {error}") from None
