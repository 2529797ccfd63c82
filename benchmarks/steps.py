"""Where a task's time goes: a real node under load, and what its histograms at ``/metrics`` say.

``python benchmarks/steps.py [--tasks 300] [--clients 64] [--write]`` hands in tasks (``/bin/true``) that only
wait, then some that are run: one by one, from several clients, in batches of 100, and one by one for another
node. For each load it prints how often each step was taken, its mean, what all of them together come to for a
task, and the bounds of its median and of its 99th part in a hundred; whose CPU time a task takes, which
depends less on what else the machine does; and whose code the node's loop is in meanwhile. Steps overlap: a
task is run while it is waited for, and what is placed has been ranked and committed. Last it says where the
CPU time of a node's membership goes in large fleets.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import _layers
import _membership
from _load import rate, request
from _nodes import Fleet, threads_cpu_s
from _page import fleet_table, section, write
from prometheus_client.parser import text_string_to_metric_families

from edgeorch.rest.probes import RENDER_S

TASK = {"name": "profile", "service": [{"driver": "native", "argv": ["/bin/true"]}]}
WAITING = TASK | {"placement": {"constraints": ["labels.none == here"]}}
THERE = TASK | {"placement": {"node": "other"}}
BATCH = 100
CHILDREN = 500
FLEETS = (100, 1000)
STEPS = {
    "rest_request": "request to answer",
    "rest_accept": "accept: who asks for what, and the body",
    "rest_decode": "decode: the body into tasks",
    "dispatch_rank": "rank: choose a node",
    "store_commit": "commit: changes on disk",
    "dispatch_placed": "accepted to taken by a node",
    "dispatch_offer": "offer to another node and back",
    "executor_start": "start: prepare and start the service",
    "executor_run": "run: start to end of the service",
    "executor_report": "report: result on the origin's disk",
}
WHO = ("the node's loop", "its store's thread", "its runner")


def histograms(text):
    """Step to (count, sum, [(upper end, cumulative count)])."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = family.name.removeprefix("edgeorch_").removesuffix("_seconds")
        if family.type != "histogram" or name not in STEPS:
            continue
        count = total = 0.0
        buckets = []
        for one in family.samples:
            if one.name.endswith("_bucket"):
                buckets.append((float(one.labels["le"]), one.value))
            elif one.name.endswith("_count"):
                count = one.value
            elif one.name.endswith("_sum"):
                total = one.value
        found[name] = (count, total, buckets)
    return found


def between(before, after):
    """What came since: the same shape."""
    zero = (0.0, 0.0, [])
    result = {}
    for name, (count, total, buckets) in after.items():
        earlier, sum_then, then = before.get(name, zero)
        old = dict(then)
        rows = [(end, number - old.get(end, 0.0)) for end, number in buckets]
        result[name] = (count - earlier, total - sum_then, rows)
    return result


def bound(buckets, count, share):
    """The upper end of the bucket in which this share of all is reached."""
    return next((end for end, number in buckets if number >= count * share), float("inf"))


def show(load, found, tasks):
    """One table."""
    print(f"\n{load['what']}: {load['rate']:.0f} tasks/s")
    print(f"{'step':<46}{'count':>7}{'mean':>11}{'a task':>11}{'p50 below':>11}{'p99 below':>11}")
    for name, text in STEPS.items():
        count, total, buckets = found.get(name, (0.0, 0.0, []))
        if count:
            ends = [bound(buckets, count, share) * 1e3 for share in (0.5, 0.99)]
            means = f"{total / count * 1e3:>8.3f} ms{total / tasks * 1e3:>8.3f} ms"
            print(f"{text:<46}{count:>7.0f}{means}{ends[0]:>8g} ms{ends[1]:>8g} ms")
    print("CPU time a task:", ", ".join(f"{who} {ms:.2f} ms" for who, ms in load["cpu"].items()))
    if load["layers"]:
        shares = sorted(load["layers"].items(), key=lambda item: -item[1])
        print("of the loop's:", ", ".join(f"{layer} {share:.0%}" for layer, share in shares))


def look(fleet):
    """The steps of all its nodes together: the origin has some of a task's, its target the others."""
    found = {}
    for node in fleet.nodes:
        with contextlib.closing(node.connect()) as connection:
            connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {fleet.token}"})
            here = histograms(connection.getresponse().read().decode())
        for name, (count, total, buckets) in here.items():
            counted, summed, known = found.get(name, (0.0, 0.0, [(end, 0.0) for end, _ in buckets]))
            rows = [(end, one + other) for (end, one), (_, other) in zip(buckets, known, strict=True)]
            found[name] = (counted + count, summed + total, rows)
    return found


def used(fleet):
    """CPU seconds of its nodes' threads and of their runners."""
    found = dict.fromkeys(WHO, 0.0)
    for node in fleet.nodes:
        threads = threads_cpu_s(node.process.pid)
        found[WHO[1]] += threads.pop("edgeorch-store", 0.0)
        found[WHO[0]] += sum(threads.values())
        found[WHO[2]] += sum(threads_cpu_s(node.runner()).values())
    return found


def measure(what, body, clients, tasks, *, nodes=("alone",), wait="wait=30", layers=False):
    """One load on the first node of a fleet of its own."""
    each = len(body) if isinstance(body, list) else 1
    calls = max(tasks // each, clients)
    with (
        tempfile.TemporaryDirectory(prefix="edgeorch-profile-") as folder,
        Fleet(Path(folder), *nodes) as fleet,
    ):
        fleet.start()
        headers = {"Authorization": f"Bearer {fleet.token}"} | ({"Prefer": wait} if wait else {})
        asked = request("POST", "/api/v1/tasks", json.dumps(body).encode(), **headers)
        rate(fleet.nodes[0].address, asked, max(20 // each, clients), clients)  # warms up
        before, cpu = look(fleet), used(fleet)
        a_second = rate(fleet.nodes[0].address, asked, calls, clients) * each
        spent = {who: (end - cpu[who]) / calls / each * 1e3 for who, end in used(fleet).items()}
        time.sleep(RENDER_S)  # what is asked for again so soon is as it was
        steps = between(before, look(fleet))
    load = {
        "what": what,
        "rate": a_second,
        "cpu": spent,
        "steps": {name: total / calls / each * 1e3 for name, (_, total, _) in steps.items()},
        "layers": _layers.shares(body, clients, calls) if layers else {},
    }
    show(load, steps, calls * each)
    return load


def child_ms():
    """CPU milliseconds of starting and waiting for one child, as ``xargs`` does it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["xargs", "-P2", "-I{}", "/bin/true"], input=b"x\n" * CHILDREN, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / CHILDREN * 1e3


def tasks(options):
    """Each load of tasks."""
    crowd = f"single POSTs, {options.clients} clients"
    count = options.tasks
    loads = [
        measure("durable 202 alone, one at a time", WAITING, 1, count, wait=""),
        measure("until finished, one at a time", TASK, 1, count, layers=True),
        measure(crowd, TASK, options.clients, count, layers=True),
        measure(f"batches of {BATCH}", [TASK] * BATCH, 2, count, layers=True),
        measure("on another node, one at a time", THERE, 1, count, nodes=("first", "other")),
    ]
    child = child_ms()
    print(f"\nCPU time of a child that xargs starts: {child:.2f} ms")
    if options.write:
        profile = {"loads": loads, "child_ms": child, "cpus": os.cpu_count(), "steps": STEPS}
        write("profile", section([], **profile))


def fleets(options):
    """Fleets in which nothing is run."""
    found = _membership.look(*FLEETS)
    print(f"\nCPU time of a node's membership, ms/s\n{fleet_table(found)}")
    if options.write:
        write("membership", section([], fleets=found))


PARTS = {"tasks": tasks, "fleets": fleets}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: both)")
    parser.add_argument("--tasks", type=int, default=300, help="of each load (default 300)")
    parser.add_argument("--clients", type=int, default=64, help="of the third load (default 64)")
    parser.add_argument("--write", action="store_true", help="write README.md and results.json")
    given = parser.parse_args()
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for name in given.parts or PARTS:
        PARTS[name](given)
