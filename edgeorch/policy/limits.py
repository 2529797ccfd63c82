"""How much a role may ask for: resources, running time, and tasks at a time."""

import math

from edgeorch import config
from edgeorch.errors import TooManyTasksError
from edgeorch.model import DEADLINE_S, Caller, Cap, ContainerFacts, Resources, Role, TaskSpec
from edgeorch.policy.refuse import Refuse

_DEFAULTS = config.Policy()


class Limits:
    """``policy.max_*``. 0 is no limit; where a task leaves something open, the limit is what it gets.

    Args:
        settings: the ``[policy]`` section.
        refuse: makes a refusal.
    """

    def __init__(self, settings: config.Policy, refuse: Refuse) -> None:
        self._settings = settings
        self._refuse = refuse
        self._caps: dict[Role, Cap] = {}
        self._known: dict[tuple[str, Role], float] = {}

    def check(self, spec: TaskSpec, role: Role, container: ContainerFacts | None) -> None:
        """Refuse a task that asks for more than its caller's role may have.

        Raises:
            PolicyError: with the key and the limit.
        """
        asked, facts = spec.resources, container or ContainerFacts()
        self._compare("max_cpus", role, max(asked.cpus, facts.cpus))
        self._compare("max_memory", role, max(asked.memory, facts.memory))
        # As much swap as memory is what the Engine gives a container that names none.
        self._compare("max_memory", role, facts.memory_swap / 2, "for each of memory and swap")
        self._compare("max_timeout_s", role, spec.timeout_s or 0)
        if spec.deadline_s != DEADLINE_S:
            self._compare("max_deadline_s", role, spec.deadline_s)

    def cap(self, role: Role) -> Cap:
        """What a task gets where it leaves it open."""
        if role not in self._caps:
            self._caps[role] = self._cap(role)
        return self._caps[role]

    def _cap(self, role: Role) -> Cap:
        resources = Resources(cpus=self._most("max_cpus", role), memory=int(self._most("max_memory", role)))
        return Cap(resources=resources, timeout_s=self._most("max_timeout_s", role) or None)

    def deadline_s(self, spec: TaskSpec, role: Role) -> float:
        """When a task must have ended, counted from its acceptance."""
        return min(spec.deadline_s, self._most("max_deadline_s", role) or math.inf)

    def check_tasks(self, caller: Caller, *, wanted: int, held: int) -> None:
        """Refuse tasks beyond what a token may have open at this node. One on several nodes counts once.

        Raises:
            PolicyError: there will never be room for so many at once.
            TooManyTasksError: there is no room before some have ended.
        """
        key, most = "policy.max_tasks", self._most("max_tasks", caller.role)
        if not most or held + wanted <= most:
            return
        said = f"{key} is {most:.10g} for the role {caller.role!r}"
        if wanted > most:
            said += f", and the request has {wanted} tasks"
            raise self._refuse(key, said, f"send fewer, or raise {key}")
        raise TooManyTasksError(
            f"{said}, and the token {caller.token!r} has {held} open tasks at this node",
            hint="wait until some have ended, cancel some, or ask another node",
            key=key,
        )

    def _most(self, name: str, role: Role) -> float:
        """A limit of a role; 0: none."""
        known = self._known.get((name, role))
        if known is None:
            default = getattr(_DEFAULTS, name)
            known = self._known[name, role] = config.for_role(
                getattr(self._settings, name), role, default=default
            )
        return known

    def _compare(self, name: str, role: Role, asked: float, of: str = "") -> None:
        most = self._most(name, role)
        if most and asked > most:
            much = f"{asked:.10g}" if asked < math.inf else "no limit"
            said = f"policy.{name} is {most:.10g} for the role {role!r}, and the task asks for {much} {of}"
            raise self._refuse(f"policy.{name}", said.rstrip(), f"ask for less, or raise policy.{name}")
