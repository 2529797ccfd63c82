"""``/metrics``: Prometheus text made from each part's ``.statistics()`` at the moment it is asked for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from itertools import accumulate
from typing import Any

from edgeorch import __version__
from edgeorch.timing import BOUNDS, Histogram

Numbers = Callable[[], Any]
"""Gives a mapping or a dataclass of numbers."""

HELP = {
    "dispatch_tasks_open": "Tasks of this origin that have not ended",
    "dispatch_tasks_ended": "Tasks of this origin that ended since the start",
    "dispatch_queued": "Tasks of this origin that wait for a node",
    "executor_slots": "Attempts that may run here at a time",
    "executor_slots_used": "Attempts that run here",
    "membership_peers": "Other nodes by state",
    "certificate_expires": "When this node's certificate ends, seconds since the epoch",
    "rest_request_seconds": "From a request's head to the end of its answer",
    "rest_accept_seconds": "Until a request's caller is known and its body read",
    "rest_decode_seconds": "Reading the tasks in a body",
    "store_commit_seconds": "Until changes are on disk",
    "dispatch_rank_seconds": "Choosing a node for a task",
    "dispatch_offer_seconds": "Until another node has answered an offer",
    "dispatch_placed_seconds": "From the acceptance of a task until a node has taken it",
    "executor_start_seconds": "Preparing and starting a service",
    "executor_run_seconds": "From the start of a service to its end",
    "executor_report_seconds": "Until the origin has a result on its disk",
    "start_time": "When this node started, seconds since the epoch",
}
LABELS = {"tasks_open": "state", "peers": "state", "refused": "reason"}
"""Numbers that come as a mapping, to the name of the label that its keys are values of."""
COUNTERS = {
    *("accepted", "dialled", "dial_failures", "streams", "calls", "served", "late_answers", "refused"),
    *("tasks_ended", "offers_accepted", "offers_refused", "delivered", "dropped"),
    *("pings_answered", "pings_unanswered", "commits", "transactions", "failures"),
}
"""Numbers that only grow; so do those that end with ``_total``. Everything else is a gauge."""


def render(parts: Mapping[str, Numbers]) -> bytes:
    """The exposition text.

    Args:
        parts: prefix (empty for none) to the function that gives its numbers. A mapping in them becomes one
            metric with a label where ``LABELS`` has its name, else one metric per key.
    """
    # Loaded on first use: a node that nobody scrapes need not hold it in memory.
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )

    class Collector:
        def collect(self) -> Iterator[Metric]:
            build = GaugeMetricFamily("edgeorch_build_info", "The release", labels=["version"])
            build.add_metric([__version__], 1)
            yield build
            for prefix, numbers in parts.items():
                mapping = _mapping(numbers())
                for key, one in mapping.items():
                    if isinstance(one, Histogram):
                        name = "_".join(part for part in (prefix, key) if part)
                        times = HistogramMetricFamily(f"edgeorch_{name}", HELP.get(name, name))
                        times.add_metric([], buckets=_buckets(one), sum_value=one.total)
                        yield times
                for path, label, values in _flat((prefix,), mapping):
                    name = "_".join(part for part in path if part)
                    counts = path[-1] in COUNTERS or name.endswith("_total")
                    kind = CounterMetricFamily if counts else GaugeMetricFamily
                    labels = [label] if label else []
                    text = HELP.get(name, name.replace("_", " "))
                    family = kind(f"edgeorch_{name}", text, labels=labels)
                    for key, number in values.items():
                        family.add_metric([key] if label else [], number)
                    yield family

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Upper end to how many took no longer, as Prometheus wants them."""
    ends = [*map(str, BOUNDS), "+Inf"]
    return list(zip(ends, map(float, accumulate(histogram.counts)), strict=True))


def _mapping(numbers: Any) -> Mapping[str, Any]:  # noqa: ANN401  see Numbers
    return asdict(numbers) if is_dataclass(numbers) and not isinstance(numbers, type) else dict(numbers)


def _flat(
    path: tuple[str, ...],
    value: Any,  # noqa: ANN401  see Numbers
) -> Iterator[tuple[tuple[str, ...], str, dict[str, float]]]:
    """(path, label, label value to number) of everything below a value; what is no number is left out."""
    if isinstance(value, bool | int | float):
        yield path, "", {"": float(value)}
    elif isinstance(value, Mapping):
        if path[-1] in LABELS:
            yield path, LABELS[path[-1]], {str(key): float(one) for key, one in value.items()}
            return
        for key, one in value.items():
            yield from _flat((*path, str(key)), one)
