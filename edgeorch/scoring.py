"""How well a node suits a service: pure numbers with reasons for people, higher is better.

A score answers "how soon would this service be done there". The yardstick is a service that needs one second
of a 1 GHz core::

    score = weight * fresh * cool / (1 / rate + ROUND_TRIPS * rtt)      rate = GHz * share * room

``share`` is what the newcomer finds idle of the CPUs that it wants (one, where it declares none). What it
would take from others counts nearly nothing: a slower CPU that idles serves the fleet better than half of a
fast one that is busy. ``room`` prefers the emptier of two nodes that have an idle CPU each.

An idle 2.4 GHz node next door scores about 2.4. Nothing left (slots, memory) is 0.
"""

from typing import Literal, NamedTuple

from edgeorch.model import NodeInfo, Peer, Sample, Score, TaskSpec

Formula = Literal["edgeorch", "baobab"]

ROUND_TRIPS = 3
"""What one attempt costs on the wire at least: the offer, the start's report, the end's report."""

UNKNOWN_MHZ = 1000.0
"""Speed of a CPU that does not tell its own."""

ABSURD = 1e9
"""No honest measurement is as large; NaN is not less either."""

SLOWEST = 1e-9
"""Least rate, so that a node without any CPU to give is still somewhere in the order."""

UNMEASURED = 0.01
"""Rate of a node that has not sent a sample yet: chosen last, but not impossible."""

LEFT_WHEN_BUSY = 0.05
"""Share of a fully busy CPU that a newcomer still gets: the kernel divides, it does not refuse."""

CROWDED = 0.25
"""What a node loses of its score until its last CPU is taken: others may place there at the same moment."""

SATURATED = 0.95
"""From here on what runs on a node would use more than it gets."""

FRESH_S = 3.0
FADE_S = 30.0
"""A sample keeps its full value for one and a half periods, then halves its value after this long."""

HOT_C = 80.0
HOT_FACTOR = 0.8
"""From here on small boards slow themselves down."""

BAOBAB_QUEUE = 1000.0
BAOBAB_SELF_RTT_S = 0.0002


class Promised(NamedTuple):
    """What this node has placed on a peer since the peer's newest sample.

    Attributes:
        slots: attempts.
        cpus: sum of their declared CPUs.
        memory: sum of their declared memory in bytes.
        ended: attempts that the sample shows and that have ended since.
        ended_cpus: sum of their declared CPUs.
    """

    slots: int = 0
    cpus: float = 0.0
    memory: int = 0
    ended: int = 0
    ended_cpus: float = 0.0


NOTHING = Promised()


def score(
    info: NodeInfo,
    sample: Sample | None,
    rtt_s: float = 0.0,
    spec: TaskSpec | None = None,
    promised: Promised | None = None,
    *,
    formula: Formula = "edgeorch",
    sample_age_s: float = 0.0,
    explain: bool = True,
) -> Score:
    """The score of one node for one service.

    Args:
        info: what the node says of itself; its ``weight`` multiplies the score.
        sample: its newest measurement, None where there is none.
        rtt_s: round trip to it in seconds, 0 for this node itself.
        spec: the service; None: any service without declared resources.
        promised: what was placed there since ``sample``; None: nothing.
        formula: ``edgeorch``, or ``baobab`` for the original's.
        sample_age_s: seconds since the sample arrived.
        explain: whether to give the reasons; without them it takes a fraction of the time.

    Returns:
        A finite value, never negative; 0 means that nothing is left there.
    """
    promised = promised or NOTHING
    if sample is None:
        return Score(value=UNMEASURED, reasons=("no measurements yet",))
    useless = _senseless(info, sample) or _nothing_left(sample, spec, promised)
    if useless:
        return Score(value=0.0, reasons=(useless,))
    if formula == "baobab":
        return _original(info, sample, rtt_s)
    needed = spec.resources.cpus if spec else 0.0
    soonest = _soonest(info, sample, max(rtt_s, 0.0), needed, promised)
    value = soonest[0] / fading(sample_age_s)
    if not explain:
        return Score(value=value)
    reasons = _reasons(
        info, sample, soonest, needed=needed, promised=promised, rtt_s=rtt_s, age_s=sample_age_s
    )
    return Score(value=value, reasons=reasons)


def worth(peer: Peer, spec: TaskSpec, promised: Promised, *, formula: Formula) -> float:
    """The value of ``score`` for a fresh sample, found in half the time; ``fading`` does the rest."""
    sample = peer.sample
    if sample is None:
        return UNMEASURED
    if _senseless(peer.info, sample) or _nothing_left(sample, spec, promised):
        return 0.0
    if formula == "baobab":
        return _original(peer.info, sample, peer.rtt_s).value
    return _soonest(peer.info, sample, max(peer.rtt_s, 0.0), spec.resources.cpus, promised)[0]


def slots_taken(sample: Sample, promised: Promised) -> int:
    """Slots in use as far as one knows."""
    return max(sample.slots_used - promised.ended, 0) + promised.slots


def fading(age_s: float) -> float:
    """What a score is divided by when its sample is so old."""
    return 1 + (age_s - FRESH_S) / FADE_S if age_s > FRESH_S else 1.0


def cpus_wanted(busy: float, cpus: int, then: float, now: int) -> float:
    """CPUs that what runs on a node uses now, by a measurement from when other attempts ran there.

    Each attempt is taken to go on as it was measured, one CPU at most; services that wait for something use
    nearly none. What is more than that is not the executor's and stays.

    Args:
        busy: measured share of all CPUs.
        cpus: how many there are.
        then: attempts that ran when ``busy`` was measured.
        now: attempts that run now.
    """
    used = busy * cpus
    each = 1.0 if busy >= SATURATED or then <= 0 else min(used / then, 1.0)
    return max(used - each * then, 0.0) + each * now


def baobab(u: float, n: float, f: float, b: float, r: float) -> float:
    """The score of edge-home-orchestration-go, release Baobab (``internal/scoringmgr``), as it computes it.

    It prefers *busier* nodes a little, and clock speed and round trip decide it; kept for comparison only.

    Args:
        u: CPU usage in percent, 0..100.
        n: number of logical CPUs.
        f: highest CPU frequency in MHz.
        b: "bandwidth": there the mean transmit queue length of the wired and wireless links.
        r: round trip in seconds; 0 or less adds nothing.

    Returns:
        The score; 0.0, which means invalid, where the CPUs, their frequency or the bandwidth is missing.
    """
    if n <= 0 or f <= 0 or b <= 0:
        return 0.0
    cpu = (f**0.66 / 5.66 + max(u, 0.0) ** 0.241 / 3.22 + n**0.3 / 4) / 3
    net = b**0.9 / 8770
    rendering = 0.77 * r**-0.43 if r > 0 else 0.0
    return float(net + cpu / 2 + rendering)


def _senseless(info: NodeInfo, sample: Sample) -> str:
    """A peer's numbers come from outside: infinities, NaN and nonsense must not order a ranking."""
    if (
        abs(sample.cpu_busy) < ABSURD
        and abs(sample.cpu_mhz) < ABSURD
        and abs(sample.load1) < ABSURD
        and abs(sample.cpus_promised) < ABSURD
        and abs(sample.cpus_wanted) < ABSURD
        and abs(sample.bandwidth_mbps) < ABSURD
        and 0 < info.weight < ABSURD
    ):
        return ""
    return "its measurements make no sense"


def _nothing_left(sample: Sample, spec: TaskSpec | None, promised: Promised) -> str:
    taken = slots_taken(sample, promised)
    if taken >= sample.slots:
        return f"no slot is free: {taken} of {sample.slots} used"
    free = _memory_free(sample, promised)
    needed = spec.resources.memory if spec else 0
    if free <= 0 or needed > free:
        return f"memory: {_mebibytes(free)} left, {_mebibytes(needed)} needed"
    return ""


def _memory_free(sample: Sample, promised: Promised) -> int:
    """Bytes that nobody uses and nobody has been promised: a running service may still grow into its own."""
    unpromised = sample.memory_total - sample.memory_promised
    return max(min(sample.memory_available, unpromised) - promised.memory, 0)


def _soonest(
    info: NodeInfo, sample: Sample, rtt_s: float, needed: float, promised: Promised
) -> tuple[float, float, float, float]:
    """The score of a fresh sample; clock speed in MHz, idle share, and share of the CPUs wanted."""
    cpus = max(sample.cpus, 1)
    mhz = sample.cpu_mhz if sample.cpu_mhz >= 1 else UNKNOWN_MHZ
    used = _used(sample, promised, cpus)
    idle = max(1 - used / cpus, 0.0)
    share = min(idle * cpus / (needed or 1.0), 1.0)
    contended = LEFT_WHEN_BUSY * (1 - share) / (1 + max(sample.load1, used, 0.0) / cpus)
    room = 1 - CROWDED * (1 - idle)
    rate = max(mhz / 1000 * (share + contended) * room, SLOWEST)
    factor = info.weight
    if sample.temperature_c is not None and sample.temperature_c >= HOT_C:
        factor *= HOT_FACTOR
    return factor / (1 / rate + ROUND_TRIPS * rtt_s), mhz, idle, share


def _reasons(
    info: NodeInfo,
    sample: Sample,
    soonest: tuple[float, float, float, float],
    *,
    needed: float,
    promised: Promised,
    rtt_s: float,
    age_s: float,
) -> tuple[str, ...]:
    _, mhz, idle, share = soonest
    cpus = max(sample.cpus, 1)
    assumed = "" if sample.cpu_mhz >= 1 else " assumed"
    found = [
        f"{cpus} x {mhz / 1000:.1f} GHz{assumed}, {idle:.0%} idle",
        f"{slots_taken(sample, promised)} of {sample.slots} slots used",
    ]
    if needed and share < 1:
        found.append(f"{needed:g} CPUs wanted, {idle * cpus:.1f} free")
    if rtt_s > 0:
        found.append(f"+{rtt_s * 1000:.1f} ms away")
    if info.weight != 1:
        found.append(f"weight {info.weight:g}")
    if age_s > FRESH_S:
        found.append(f"measured {age_s:.0f} s ago")
    if sample.temperature_c is not None and sample.temperature_c >= HOT_C:
        found.append(f"hot: {sample.temperature_c:.0f} °C")
    return tuple(found)


def _used(sample: Sample, promised: Promised, cpus: int) -> float:
    """CPUs that are in use or promised.

    A node that does not say what its attempts use now (release 1) is taken to use what was measured, or its
    slots' share. What was placed since the sample comes on top: its declared CPUs, or one for each attempt,
    because nobody knows yet what it uses. What has ended since takes its share of what is used with it.
    """
    used = sample.cpus_wanted
    if used < 0:
        used = max(sample.cpu_busy, sample.slots_used / max(sample.slots, 1)) * cpus
    declared = sample.cpus_promised
    if promised.ended:
        used *= max(1 - promised.ended / max(sample.slots_used, 1), 0.0)
        declared -= promised.ended_cpus
    return max(used, declared) + max(promised.cpus, promised.slots)


def _original(info: NodeInfo, sample: Sample, rtt_s: float) -> Score:
    """The original formula over our measurements.

    u is ``cpu_busy``, n ``cpus``, f ``cpu_mhz``. b is the link speed in Mbit/s; where the link does not tell
    one, 1000, the transmit queue length of nearly every link. r is the round trip; the node itself, which the
    original pings over its own address, gets 0.2 ms.
    """
    bandwidth = sample.bandwidth_mbps if sample.bandwidth_mbps > 0 else BAOBAB_QUEUE
    rtt = rtt_s if rtt_s > 0 else BAOBAB_SELF_RTT_S
    value = baobab(sample.cpu_busy * 100, sample.cpus, sample.cpu_mhz, bandwidth, rtt)
    reason = (
        f"original formula: {sample.cpu_busy:.0%} busy, {sample.cpus} x {sample.cpu_mhz:.0f} MHz, "
        f"bandwidth {bandwidth:.0f}, {rtt * 1000:.1f} ms"
    )
    return Score(value=value * info.weight, reasons=(reason,))


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"
