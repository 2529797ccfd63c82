"""A node's answer times, memory, idle CPU and start against the goals, on real node processes.

``python benchmarks/bench_node.py [--json] [--requests 1000] [--many 5000] [--idle 20]`` prints each figure,
its goal and whether it is met. Absolute times depend on the machine and on what else runs there (CPU time per
request does less so); peers that are down are measured against a node without them, request by request.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from _nodes import Fleet, cpu_s, post, resident_mb

STARTS = 5
PAIRS = 300
SETTLE_S = 3.0


def measure_start(node):
    """Median seconds from the command to READY=1, each time with a stop in between; leaves it running."""
    node.start()  # compiles the modules where that was not done
    times = []
    for _ in range(STARTS):
        node.stop()
        times.append(node.start())
    return {"start_s": statistics.median(times)}


def measure_idle(nodes, seconds):
    """What a node with two peers and its runner use when nothing is asked of them; the worst of the nodes."""
    time.sleep(SETTLE_S)
    before = [(cpu_s(node.process.pid), cpu_s(node.runner())) for node in nodes]
    begun = time.perf_counter()
    time.sleep(seconds)
    took = time.perf_counter() - begun
    after = [(cpu_s(node.process.pid), cpu_s(node.runner())) for node in nodes]
    used = [(a[0] + a[1] - b[0] - b[1]) / took * 100 for a, b in zip(after, before, strict=True)]
    return {
        "idle_rss_mb": max(resident_mb(node.process.pid) for node in nodes),
        "runner_rss_mb": max(resident_mb(node.runner()) for node in nodes),
        "idle_cpu_percent": statistics.median(used),
    }


def measure_dead_peers(node, alone):
    """What two peers that are down, one killed and one stopped, add to the median, request by request."""
    times = {node: [], alone: []}
    order = [node, alone]
    with contextlib.closing(node.connect()) as one, contextlib.closing(alone.connect()) as other:
        for number in range(-20, PAIRS):  # the first ones warm up
            order.reverse()
            for which in order:
                took, message = post(one if which is node else other)
                if message != "ERROR_NONE":
                    raise SystemExit(f"{which.name} answered {message}")
                if number >= 0:
                    times[which].append(took * 1000)
    pairs = zip(times[node], times[alone], strict=True)
    return {
        "down_with_ms": statistics.median(times[node]),
        "down_without_ms": statistics.median(times[alone]),
        "down_adds_ms": statistics.median(down - without for down, without in pairs),
    }


def measure_requests(node, count, many):
    """p50 and p99 of sequential requests on one connection, then how many more in a row are answered."""
    with contextlib.closing(node.connect()) as connection:
        times = [post(connection)[0] * 1000 for _ in range(count)]
        pids = (node.process.pid, node.runner())
        used = [cpu_s(pid) for pid in pids]
        begun = time.perf_counter()
        answered = sum(post(connection)[1] == "ERROR_NONE" for _ in range(many))
        rate = many / (time.perf_counter() - begun)
        used = [(cpu_s(pid) - before) / many * 1000 for pid, before in zip(pids, used, strict=True)]
    cuts = statistics.quantiles(times, n=100)
    return {
        "p50_ms": cuts[49],
        "p99_ms": cuts[98],
        "unanswered": many - answered,
        "requests_per_s": rate,
        "node_cpu_ms": used[0],
        "runner_cpu_ms": used[1],
        "busy_rss_mb": resident_mb(node.process.pid),
    }


GOALS = (
    ("p50_ms", "request to answer, p50", "ms", 5),
    ("p99_ms", "request to answer, p99", "ms", 25),
    ("unanswered", "of the many in a row, not answered", "", 0),
    ("requests_per_s", "of the many in a row, a second", "/s", None),
    ("node_cpu_ms", "node's CPU time for each", "ms", None),
    ("runner_cpu_ms", "its runner's", "ms", None),
    ("busy_rss_mb", "node's memory after them", "MB", None),
    ("down_without_ms", "p50 without peers", "ms", None),
    ("down_with_ms", "p50 with two peers down", "ms", None),
    ("down_adds_ms", "median difference", "ms", 0),
    ("idle_rss_mb", "idle node's memory", "MB", 75),
    ("runner_rss_mb", "its runner's memory", "MB", 30),
    ("idle_cpu_percent", "idle CPU of both", "%", 1),
    ("start_s", "start to READY", "s", 1.5),
)
NOISE_MS = 0.3
"""Medians of the same thing differ by this much here; a dead peer that is waited for costs thousands."""


def met(name, value, goal):
    """Whether a figure meets its goal."""
    return value <= goal + (NOISE_MS if name == "down_adds_ms" else 0)


def show(figures):
    """The table."""
    machine = f"{os.cpu_count()} CPUs, Python {platform.python_version()}, {platform.machine()}"
    print(f"{machine}, load {os.getloadavg()[0]:.1f}")
    for name, text, unit, goal in GOALS:
        value = figures[name]
        against = (
            "" if goal is None else f"  goal {goal:>4g}  {'met' if met(name, value, goal) else 'MISSED'}"
        )
        print(f"{text:<36}{value:>9.2f} {unit:<3}{against}".rstrip())


def main(options):
    """Run all of it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # tidy up then, too
    with tempfile.TemporaryDirectory(prefix="edgeorch-bench-") as name:
        folder = Path(name)
        figures = {}
        with Fleet(folder / "one", "alone", first=9) as single:
            (alone,) = single.nodes
            figures |= measure_start(alone)
            with Fleet(folder / "three", "here", "killed", "frozen") as fleet:
                here, killed, frozen = fleet.start()
                figures |= measure_idle(fleet.nodes, options.idle)
                killed.kill_host()
                frozen.process.send_signal(signal.SIGSTOP)
                here.until_seen("dead", "suspect", others=(killed, frozen))
                figures |= measure_dead_peers(here, alone)
            figures |= measure_requests(alone, options.requests, options.many)
    if options.json:
        print(json.dumps(figures))
    else:
        show(figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--requests", type=int, default=1000, help="measured one after the other")
    parser.add_argument("--many", type=int, default=5000, help="in a row after these; all must be answered")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds of idling to measure")
    main(parser.parse_args())
