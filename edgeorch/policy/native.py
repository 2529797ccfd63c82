"""Which programs of the node may be started: ``policy.native``."""

from collections.abc import Sequence

from edgeorch import config
from edgeorch.model import Caller, NativeService, Role, TaskSpec
from edgeorch.policy.refuse import Refuse
from edgeorch.services import ListedService

KEY = "policy.native"
REQUESTER = "ServiceRequester"
"""Metadata of a task from the original API: the program that asks, by its own word."""


class NativeRules:
    """The rules for native services of one node.

    Args:
        settings: the ``[policy]`` section.
        listed: what ``services.load_services`` found.
        refuse: makes a refusal.
    """

    def __init__(self, settings: config.Policy, listed: Sequence[ListedService], refuse: Refuse) -> None:
        self._settings = settings
        self._listed = tuple(listed)
        self._refuse = refuse

    def check(
        self, service: NativeService, spec: TaskSpec, caller: Caller, *, runner_is_other_user: bool
    ) -> None:
        """Refuse a program that may not be started here.

        Raises:
            PolicyError: with the rule, the key and what to do.
        """
        native = self.rule(caller.role, runner_is_other_user=runner_is_other_user)
        if native == "any":
            return
        said = f"{KEY} is {native} for the role {caller.role!r}"
        if native == "off":
            raise self._refuse(KEY, said, f"change {KEY}")
        same_name = [listed for listed in self._listed if listed.name == spec.name]
        if not same_name:
            raise self._refuse(
                KEY,
                f"{said}, and no service {spec.name!r} is listed",
                f"add {spec.name}.toml to policy.services, or set {KEY}",
                rule="service",
            )
        requesters = self._requesters(spec, caller)
        reasons = [self._refusal(listed, service, requesters) for listed in same_name]
        if None in reasons:
            return
        rule, why, what = next(filter(None, reasons))
        raise self._refuse(KEY, f"{said}, and {why}", what, rule=rule)

    def _requesters(self, spec: TaskSpec, caller: Caller) -> set[str]:
        """Names that ask: the token's, and the one that the request claims where that is believed."""
        claimed = spec.metadata.get(REQUESTER, "") if self._settings.requester == "claimed" else ""
        return {caller.token, claimed} - {""}

    @staticmethod
    def _refusal(
        listed: ListedService, service: NativeService, requesters: set[str]
    ) -> tuple[str, str, str] | None:
        """Rule, reason and what to do where this is not the listed service."""
        if listed.requesters is not None and requesters.isdisjoint(listed.requesters):
            names = " or ".join(sorted(requesters))
            why = f"{listed.source} does not let {names} ask for it"
            return (
                "requester",
                why,
                f"add {names} to it, use a token of a listed name, or set policy.requester",
            )
        if why := listed.refusal(service.argv, service.env):
            return "program", why, f"change {listed.source}, or send what it lists"
        return None

    def rule(self, role: Role, *, runner_is_other_user: bool) -> config.NativeRule:
        """``policy.native`` for a role, with ``auto`` resolved: ``any``, ``listed`` or ``off``."""
        rule: config.NativeRule = config.for_role(self._settings.native, role, default="auto")
        if rule == "auto":
            return "any" if runner_is_other_user or role == "admin" else "listed"
        return rule
