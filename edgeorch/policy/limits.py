"""How much a role may ask for: resources, running time, and tasks at a time."""

import math
from collections.abc import Callable

from edgeorch import config
from edgeorch.errors import PolicyError, TooManyTasksError
from edgeorch.model import DEADLINE_S, Caller, Cap, ContainerFacts, Resources, Role, TaskSpec

Refuse = Callable[..., PolicyError]


class Limits:
    """``policy.max_*``. 0 is no limit; where a task leaves something open, the limit is what it gets.

    Args:
        settings: the ``[policy]`` section.
        refuse: makes a refusal of a key, a sentence and what to do.
    """

    def __init__(self, settings: config.Policy, refuse: Refuse) -> None:
        self._settings = settings
        self._refuse = refuse

    def check(self, spec: TaskSpec, role: Role, container: ContainerFacts | None) -> None:
        """Refuse a task that asks for more than its caller's role may have.

        Raises:
            PolicyError: with the key and the limit.
        """
        facts = container or ContainerFacts()
        most = self.cap(role)
        self._compare("policy.max_cpus", role, most.resources.cpus, max(spec.resources.cpus, facts.cpus))
        memory = max(spec.resources.memory, facts.memory)
        self._compare("policy.max_memory", role, most.resources.memory, memory)
        # the Engine's own measure: as much swap as memory
        self._compare(
            "policy.max_memory", role, 2 * most.resources.memory, facts.memory_swap, "of memory and swap"
        )
        self._compare("policy.max_timeout_s", role, most.timeout_s or 0, spec.timeout_s or 0)
        longest = config.for_role(self._settings.max_deadline_s, role, default=0.0)
        if spec.deadline_s != DEADLINE_S:
            self._compare("policy.max_deadline_s", role, longest, spec.deadline_s)

    def cap(self, role: Role) -> Cap:
        """What a task gets where it leaves it open."""
        settings = self._settings
        return Cap(
            resources=Resources(
                cpus=config.for_role(settings.max_cpus, role, default=0.0),
                memory=config.for_role(settings.max_memory, role, default=0),
            ),
            timeout_s=config.for_role(settings.max_timeout_s, role, default=0.0) or None,
        )

    def deadline_s(self, spec: TaskSpec, role: Role) -> float:
        """When a task must have ended, counted from its acceptance."""
        longest = config.for_role(self._settings.max_deadline_s, role, default=0.0)
        return min(spec.deadline_s, longest or math.inf)

    def check_tasks(self, caller: Caller, *, wanted: int, held: int) -> None:
        """Refuse tasks beyond what a token may have open at this node. One on several nodes counts once.

        Raises:
            PolicyError: there will never be room for so many at once.
            TooManyTasksError: there is no room before some have ended.
        """
        key = "policy.max_tasks"
        most = config.for_role(self._settings.max_tasks, caller.role, default=config.MAX_TASKS)
        if not most or held + wanted <= most:
            return
        said = f"{key} is {most} for the role {caller.role!r}"
        if wanted > most:
            raise self._refuse(
                key, f"{said}, and the request has {wanted} tasks", f"send fewer, or raise {key}"
            )
        raise TooManyTasksError(
            f"{said}, and the token {caller.token!r} has {held} open tasks at this node",
            hint="wait until some have ended, cancel some, or ask another node",
            key=key,
        )

    def _compare(self, key: str, role: Role, most: float, asked: float, of: str = "") -> None:
        if most and asked > most:
            much = "no limit" if asked == math.inf else f"{asked:.10g}"
            said = f"{key} is {most:.10g} for the role {role!r}, and the task asks for {much}"
            raise self._refuse(key, f"{said} {of}".rstrip(), f"ask for less, or raise {key}")
