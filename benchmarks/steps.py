"""Where a task's time goes: a real node under load, and what its histograms at ``/metrics`` say.

``python benchmarks/steps.py [--tasks 300] [--clients 8]`` hands in tasks (``/bin/true``) one by one, then
from several clients, then one by one for another node, and prints for each step how often it was taken, its
mean, what all of them together come to for a task, and the bounds of its median and of its 99th part in a
hundred; and below what CPU time a task takes, which hardly depends on what else the machine does. Steps
overlap: a task is run while it is waited for, and what is placed has been ranked and committed.
"""

import argparse
import contextlib
import json
import tempfile
from pathlib import Path

from _load import rate, request
from _nodes import Fleet, cpu_s
from prometheus_client.parser import text_string_to_metric_families

TASK = {"name": "profile", "service": [{"driver": "native", "argv": ["/bin/true"]}]}
STEPS = {
    "rest_request": "request to answer (waits for the end here)",
    "rest_accept": "accept: who asks for what, and the body",
    "rest_decode": "decode: the body into a task",
    "dispatch_rank": "rank: choose a node",
    "store_commit": "commit: changes on disk",
    "dispatch_placed": "accepted to taken by a node",
    "dispatch_offer": "offer to another node and back",
    "executor_start": "start: prepare and start the service",
    "executor_run": "run: start to end of the service",
    "executor_report": "report: result on the origin's disk",
}


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


def show(title, found, tasks):
    """One table."""
    print(f"\n{title}")
    print(f"{'step':<46}{'count':>7}{'mean':>11}{'a task':>11}{'p50 below':>11}{'p99 below':>11}")
    for name, text in STEPS.items():
        count, total, buckets = found.get(name, (0.0, 0.0, []))
        if count:
            ends = [bound(buckets, count, share) * 1e3 for share in (0.5, 0.99)]
            means = f"{total / count * 1e3:>8.3f} ms{total / tasks * 1e3:>8.3f} ms"
            print(f"{text:<46}{count:>7.0f}{means}{ends[0]:>8g} ms{ends[1]:>8g} ms")


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
    """CPU seconds of its nodes and of their runners."""
    nodes = sum(cpu_s(node.process.pid) for node in fleet.nodes)
    return {"nodes": nodes, "runners": sum(cpu_s(node.runner()) for node in fleet.nodes)}


def measure(fleet, task, clients, tasks):
    """One load on the first node."""
    headers = {"Authorization": f"Bearer {fleet.token}", "Prefer": "wait=30"}
    what = request("POST", "/api/v1/tasks", json.dumps(task).encode(), **headers)
    address = fleet.nodes[0].address
    rate(address, what, 20, 1)  # warms up
    steps, cpu = look(fleet), used(fleet)
    a_second = rate(address, what, tasks, clients)
    costs = [f"{name} {(end - cpu[name]) / tasks * 1e3:.2f} ms" for name, end in used(fleet).items()]
    where = "on another node, " if len(fleet.nodes) > 1 else ""
    title = f"{where}{clients} client{'s' * (clients > 1)}: {a_second:.0f} tasks/s"
    show(title, between(steps, look(fleet)), tasks)
    print(f"CPU time a task: {', '.join(costs)}")


def main(options):
    """Each load."""
    there = TASK | {"placement": {"node": "other"}}
    loads = [(["alone"], TASK, [1, options.clients]), (["first", "other"], there, [1])]
    for names, task, crowds in loads:
        with (
            tempfile.TemporaryDirectory(prefix="edgeorch-profile-") as folder,
            Fleet(Path(folder), *names) as fleet,
        ):
            fleet.start()
            for clients in crowds:
                measure(fleet, task, clients, options.tasks)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=300, help="of each load (default 300)")
    parser.add_argument("--clients", type=int, default=8, help="of the second load (default 8)")
    main(parser.parse_args())
