"""Whether this node takes an offer: its own facts and policy decide, whatever the origin believes."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

from edgeorch.errors import EdgeorchError, PolicyError
from edgeorch.executor.slots import Slots
from edgeorch.model import Caller, NodeInfo, Offer, Sample, Service, TaskSpec
from edgeorch.scheduler import choose_service, mismatch

FEATURES: tuple[str, ...] = ()
"""Names of what release 1 did not have; an offer that requires another one is refused by name."""

Cause: TypeAlias = Literal["busy", "policy", "driver", "unsupported", "draining", "constraint", "storage"]
PolicyCheck: TypeAlias = Callable[[Service, str, Caller], None]
"""Takes the service, the task's name and who asks; raises ``PolicyError``."""


class Refusal(EdgeorchError):  # noqa: N818  the word of the protocol
    """The offer is not taken; ``cause`` is the word that travels in ``Offered``."""

    slug = "refused"
    title = "The node does not take the task"
    status = 409

    def __init__(self, detail: str, *, hint: str = "", cause: Cause = "busy") -> None:
        super().__init__(detail, hint=hint)
        self.cause: Cause = cause


def decide(
    offer: Offer, info: NodeInfo, sample: Sample, slots: Slots, check_policy: PolicyCheck
) -> tuple[TaskSpec, Service]:
    """The decoded spec and the alternative to run.

    Args:
        offer: what the origin asks.
        info: this node as it is now.
        sample: the newest measurements.
        slots: this node's slots.
        check_policy: raises ``PolicyError`` where the policy says no.

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
        check_policy(service, spec.name, offer.caller)
    except PolicyError as error:
        raise Refusal(str(error), cause="policy") from None
    if slots.full:
        raise Refusal(f"{info.name}: all {slots.total} slots are in use", cause="busy")
    free = sample.memory_available - slots.load().memory
    if spec.resources.memory > free > 0:
        raise Refusal(f"{info.name}: {spec.resources.memory} bytes of memory are not free", cause="busy")
    return spec, service
