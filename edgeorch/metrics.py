"""``/metrics``: Prometheus text made from each part's ``.statistics()`` at the moment it is asked for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from edgeorch import __version__

Numbers = Callable[[], Any]
"""Gives a mapping or a dataclass of numbers."""

HELP = {
    "tasks_open": "Tasks of this origin that have not ended",
    "tasks_ended": "Tasks of this origin that ended since the start",
    "queued": "Tasks of this origin that wait for a node",
    "slots": "Attempts that may run here at a time",
    "slots_used": "Attempts that run here",
    "peers": "Other nodes by state",
    "certificate_expires": "When this node's certificate ends, seconds since the epoch",
    "start_time": "When this node started, seconds since the epoch",
}
COUNTERS = ("ended", "accepted", "refused", "delivered", "dropped", "calls", "frames", "bytes", "requests")
"""Last words of numbers that only grow; everything else is a gauge."""


def render(parts: Mapping[str, Numbers]) -> bytes:
    """The exposition text.

    Args:
        parts: prefix (empty for none) to the function that gives its numbers. A number under a mapping of
            mappings becomes one metric with a label: ``{"tasks_open": {"waiting": 2}}``.
    """
    # Loaded on first use: a node that nobody scrapes need not hold it in memory.
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

    class Collector:
        def collect(self) -> Iterator[Metric]:
            build = GaugeMetricFamily("edgeorch_build_info", "The release", labels=["version"])
            build.add_metric([__version__], 1)
            yield build
            for prefix, numbers in parts.items():
                for name, value in _mapping(numbers()).items():
                    for flat, labelled in _flat((prefix, name), value):
                        text = HELP.get(flat, flat.replace("_", " "))
                        counts = flat.endswith(COUNTERS)
                        kind = CounterMetricFamily if counts else GaugeMetricFamily
                        labels = ["state"] if any(labelled) else []
                        family = kind(f"edgeorch_{flat}", text, labels=labels)
                        for label, number in labelled.items():
                            family.add_metric([label] if labels else [], float(number))
                        yield family

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry)


def _mapping(numbers: Any) -> Mapping[str, Any]:  # noqa: ANN401  see Numbers
    return asdict(numbers) if is_dataclass(numbers) and not isinstance(numbers, type) else dict(numbers)


def _flat(path: tuple[str, ...], value: Any) -> Iterator[tuple[str, dict[str, float]]]:  # noqa: ANN401
    """(name, label to number) of everything below a value; what is no number is left out."""
    name = "_".join(part for part in path if part)
    if isinstance(value, bool | int | float):
        yield name, {"": float(value)}
    elif isinstance(value, Mapping):
        numbers = {str(key): float(one) for key, one in value.items() if isinstance(one, int | float)}
        if numbers and path[-1] in ("tasks_open", "peers", "links", "refusals"):
            yield name, numbers
            return
        for key, one in value.items():
            yield from _flat((*path, str(key)), one)
