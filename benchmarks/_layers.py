"""Whose code the loop of a node is in while tasks come: a profile of its main thread, summed up by layer."""

import contextlib
import json
import pstats
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from _load import rate, request
from _nodes import PATIENCE_S, Fleet

Layers = Mapping[str, Sequence[str]]
"""Layer to what the paths of its files contain; the first that fits counts."""
LAYERS: Layers = {
    "HTTP: edgeorch/rest": ("edgeorch/rest/",),
    "HTTP: Quart, Werkzeug, Hypercorn": ("/quart/", "/quart_trio/", "/werkzeug/", "/hypercorn/"),
    "edgeorch/dispatch, scheduler, scoring": (
        *("edgeorch/dispatch/", "edgeorch/scheduler.py", "edgeorch/scoring.py"),
        *("edgeorch/lifecycle.py", "edgeorch/constraints.py"),
    ),
    "edgeorch/executor": ("edgeorch/executor/", "edgeorch/output/", "edgeorch/runner/"),
    "edgeorch/store": ("edgeorch/store/",),
    "logs: edgeorch/logs.py, structlog": ("edgeorch/logs.py", "/structlog/"),
    "Trio": ("/trio/", "/outcome/", "/sniffio/"),
    "the rest of edgeorch": ("edgeorch/",),
}
OTHERS = "Python's library and others"
IDLE = "'select.epoll' objects"
"""What waits for something to do."""


def shares(task: dict[str, object], clients: int, tasks: int) -> dict[str, float]:
    """Layer to its share of the loop's time."""
    with (
        tempfile.TemporaryDirectory(prefix="edgeorch-profile-") as place,
        Fleet(Path(place), "node") as fleet,
    ):
        (node,) = fleet.nodes
        file = Path(place) / "profile"
        node.program = (sys.executable, str(Path(__file__).with_name("_profiled.py")), str(file))
        node.start()
        headers = {"Authorization": f"Bearer {fleet.token}", "Prefer": "wait=30"}
        what = request("POST", "/api/v1/tasks", json.dumps(task).encode(), **headers)
        rate(node.address, what, clients, clients)  # warms up
        node.process.send_signal(signal.SIGUSR1)
        rate(node.address, what, tasks, clients)
        node.process.send_signal(signal.SIGUSR2)
        return by_layer(_stats(file), LAYERS)


def _stats(file: Path) -> pstats.Stats:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError, EOFError, ValueError, TypeError):
            return pstats.Stats(str(file))
        time.sleep(0.1)
    raise SystemExit("the node has not written its profile")


def by_layer(stats: pstats.Stats, layers: Layers) -> dict[str, float]:
    """Layer to its share of a profile, and that of what is in none of them.

    What C code takes is its caller's. The profile makes each call of Python dearer, so layers of many short
    functions, such as Trio, look larger than they are.
    """
    seconds: Counter[str] = Counter()
    for (file, _, name), (*_, own, _total, callers) in stats.stats.items():  # type: ignore[attr-defined]
        if IDLE in name:
            continue
        if file != "~":
            seconds[_layer(file, layers)] += own
            continue
        for caller, numbers in callers.items():
            seconds[_layer(caller[0], layers)] += numbers[2]
    whole = sum(seconds.values())
    return {layer: seconds[layer] / whole for layer in (*layers, OTHERS)}


def _layer(file: str, layers: Layers) -> str:
    found = (layer for layer, parts in layers.items() if any(part in file for part in parts))
    return next(found, OTHERS)
