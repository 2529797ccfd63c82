"""Whether this node takes an offer: its own facts and policy decide, whatever the origin believes."""

from typing import Literal, Protocol, TypeAlias

import msgspec

from edgeorch.errors import EdgeorchError, PolicyError
from edgeorch.executor.slots import Slots
from edgeorch.model import Caller, Cap, NodeInfo, Offer, Resources, Sample, Service, TaskSpec
from edgeorch.scheduler import choose_service, mismatch

SECRETS = "secrets"
FEATURES: tuple[str, ...] = (SECRETS,)
"""Names of what release 1 did not have; an offer that requires another one is refused by name."""

UNLIMITED = Cap()
Cause: TypeAlias = Literal["busy", "policy", "driver", "unsupported", "draining", "constraint", "storage"]


class Rules(Protocol):
    """What origin and target ask of the node's policy."""

    def check(self, spec: TaskSpec, service: Service, caller: Caller) -> None:
        """Raise ``PolicyError`` where one of the task's services may not run here."""
        ...

    def check_tasks(self, caller: Caller, *, wanted: int, held: int) -> None:
        """Raise ``PolicyError`` or ``TooManyTasksError`` where the caller may not have so many open tasks."""
        ...

    def check_callback(self, host: str, caller: Caller) -> None:
        """Raise ``PolicyError`` where a callback must not go to the host, as far as its name tells."""
        ...

    def cap(self, caller: Caller) -> Cap:
        """What the caller's tasks get where they leave it open."""
        ...

    def deadline_s(self, spec: TaskSpec, caller: Caller) -> float:
        """When the task must have ended, counted from its acceptance."""
        ...


class Refusal(EdgeorchError):  # noqa: N818  the word of the protocol
    """The offer is not taken; ``cause`` is the word that travels in ``Offered``."""

    slug = "refused"
    title = "The node does not take the task"
    status = 409

    def __init__(self, detail: str, *, hint: str = "", cause: Cause = "busy") -> None:
        super().__init__(detail, hint=hint)
        self.cause: Cause = cause


def decide(
    offer: Offer, info: NodeInfo, sample: Sample, slots: Slots, rules: Rules, *, soon: bool = False
) -> tuple[TaskSpec, Service]:
    """The decoded spec and the alternative to run.

    Args:
        offer: what the origin asks.
        info: this node as it is now.
        sample: the newest measurements.
        slots: this node's slots.
        rules: the policy.
        soon: whether a slot that will be free in a moment will do.

    Raises:
        Refusal: with the cause and one sentence.
    """
    if info.state != "ready":
        raise Refusal(f"{info.name} is {info.state}", cause="draining")
    missing = [feature for feature in offer.requires if feature not in FEATURES]
    if missing:
        raise Refusal(f"{info.name} ({info.version}) lacks: {', '.join(missing)}", cause="unsupported")
    try:
        spec = msgspec.json.decode(offer.spec, type=TaskSpec)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(
            f"{info.name} ({info.version}) cannot read the task: {error}", cause="unsupported"
        ) from None
    reason = mismatch(spec, info, accepting="")
    service = choose_service(spec.service, info.drivers)
    if reason or service is None:
        raise Refusal(f"{info.name}: {reason}", cause="constraint" if service else "driver")
    try:
        rules.check(spec, service, offer.caller)
    except PolicyError as error:
        raise Refusal(str(error), cause="policy") from None
    except EdgeorchError as error:
        raise Refusal(f"{info.name} ({info.version}): {error}", cause="unsupported") from None
    if slots.full_for_long if soon else slots.full:
        raise Refusal(f"{info.name}: all {slots.total} slots are in use", cause="busy")
    free = sample.memory_available - slots.load().memory
    if spec.resources.memory > free > 0:
        raise Refusal(f"{info.name}: {spec.resources.memory} bytes of memory are not free", cause="busy")
    return spec, service


def tightened(offer: Offer, cap: Cap) -> Offer:
    """The offer within the limits of a policy, for what its spec leaves open."""
    if cap == UNLIMITED:
        return offer
    times = [seconds for seconds in (offer.timeout_s, cap.timeout_s) if seconds]
    resources = Resources(
        cpus=_least(offer.cap.cpus, cap.resources.cpus),
        memory=int(_least(offer.cap.memory, cap.resources.memory)),
    )
    return msgspec.structs.replace(offer, timeout_s=min(times, default=None), cap=resources)


def _least(*limits: float) -> float:
    """The tightest; 0 is none."""
    return min((limit for limit in limits if limit), default=0)
