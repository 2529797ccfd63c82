"""SIGHUP: what of the settings and key files comes into force without a restart."""

from collections.abc import Callable, Sequence

import structlog

from edgeorch import config, logs
from edgeorch.config import Config, Loaded
from edgeorch.errors import EdgeorchError
from edgeorch.executor.rules import NodeRules
from edgeorch.health import Health
from edgeorch.identity import Identity
from edgeorch.membership import Membership, SelfInfo

log = structlog.get_logger()

AT_ONCE = (
    *("node.labels", "discovery.seeds", "scoring.weight", "log.level"),
    *(f"policy.{key}" for key in config.Policy.__struct_fields__),
)


class Reload:
    """Reads everything again; what cannot be used leaves the old in force, and is told.

    Args:
        loaded: the settings that the node was started with.
        identity: the node's certificates and the revocation list.
        read_tokens: reads the tokens again.
        read_store_key: reads the key for secrets again.
        recheck: judges every peer by the new certificates and list.
        self_info: labels, weight and end of the certificate, told to the others.
        membership: follows the seeds.
        rules: the policy, also the files that it names.
        health: shows what needs a restart, or why nothing changed.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        identity: Identity,
        read_tokens: Callable[[], None],
        read_store_key: Callable[[], None],
        recheck: Callable[[], None],
        self_info: SelfInfo,
        membership: Membership,
        rules: NodeRules,
        health: Health,
    ) -> None:
        self._loaded = loaded
        self._now = loaded.config
        self._identity = identity
        self._read_tokens = read_tokens
        self._read_store_key = read_store_key
        self._recheck = recheck
        self._self_info = self_info
        self._membership = membership
        self._rules = rules
        self._health = health

    def __call__(self) -> None:
        """Do it now."""
        kept = [
            *self._try("settings", self._settings),
            *self._try("certificates", self._identity.reload),
            *self._try("tokens", self._read_tokens),
            *self._try("key of the store", self._read_store_key),
        ]
        self._health.settings = "; ".join(kept)
        self._recheck()
        self._self_info.change(cert_expires_at=self._identity.not_after)
        log.info("reloaded", kept_old=kept or "nothing")

    def _settings(self) -> None:
        loaded = config.load(self._loaded.path)
        new = loaded.config
        self._rules.follow(loaded)
        changed = differing(self._now, new)
        if "discovery.seeds" in changed:
            self._membership.follow_seeds(new)
        self._self_info.change(labels=dict(new.node.labels), weight=new.scoring.weight)
        if "log.level" in changed:
            logs.set_level(new.log.level)
        self._now = new
        self._health.restart = tuple(key for key in differing(self._loaded.config, new) if key not in AT_ONCE)
        if self._health.restart:
            log.warning("some changed settings need a restart", settings=list(self._health.restart))
        if taken := [key for key in changed if key in AT_ONCE]:
            log.info("settings taken over", settings=taken)

    @staticmethod
    def _try(what: str, act: Callable[[], object]) -> Sequence[str]:
        try:
            act()
        except EdgeorchError as error:
            log.warning("kept the old ones", what=what, reason=error.detail, hint=error.hint)
            return (f"new {what} not in force: {error.detail}",)
        return ()


def differing(one: Config, other: Config) -> list[str]:
    """``section.key`` of every setting that is not the same."""
    return [
        f"{section}.{key}"
        for section in Config.__struct_fields__
        for key in getattr(one, section).__struct_fields__
        if getattr(getattr(one, section), key) != getattr(getattr(other, section), key)
    ]
