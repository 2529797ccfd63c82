"""The page of all comparisons: ``results.json`` holds what was measured last, ``README.md`` shows it.

Each harness replaces its own part of both files and keeps the other's; nobody writes either by hand.
"""

import datetime as dt
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _rounds import Row, figure

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
MENTIONED = ("trio", "hypercorn", "quart", "quart-trio", "httpx2", "msgspec")
START = """# Benchmarks

Written by the harness; nobody edits this page. The sides of a row took turns in the same run; the ratio is
the median of the rounds, with the smallest and the largest. Only the ratio is judged.
"""
PARTS = """## Beside what it is built on

`make bench ARGS=--write` on {date}: {machine}.

{table}
"""
PROFILE = """## Where the time goes

`make profile ARGS=--write` on {date}: {machine}.

CPU milliseconds a task (`/bin/true`). On {cpus} CPUs all that is spent for a task bounds how many there can
be in a second; what the clients take comes on top. `xargs` spends {child:.2f} ms for a child:
0.60 of its rate would leave {at_60:.2f} ms for everything else, 0.90 of it {at_90:.2f} ms.

{cpu}

Milliseconds of each step a task, from the histograms at `/metrics`; they overlap.

{steps}

Whose code the loop is in, in parts of its time, under cProfile: it makes calls dearer, so what consists of
many short functions looks larger than it is.

{layers}
"""
MEMBERSHIP = """## What membership costs in a large fleet

`make profile ARGS=--write` on {date}: {machine}.

CPU milliseconds of a virtual node in a second, without TLS and sockets, by whose code it is in under cProfile
as above. One node goes on alone once its fleet has settled; where all share a process, the tables of the
large fleet do not fit into the processor's cache, and a real node has only its own.

{table}
"""
SOAK = """## {minutes:g} minutes at {share:.0%} of what it can do

`make soak ARGS=--write` on {date}: {machine}.

{tasks:,} tasks (`/bin/true`) came at random moments, {offered_per_s:.0f} a second; 64 clients had got
{capacity_per_s:.0f} out of the same node before. Each counts from when it was due. {slow:,} of them took
over half a second; they were due in {slow_seconds} of the {seconds:,.0f} seconds.

| | first third | last third | ratio | |
| --- | ---: | ---: | ---: | --- |
{table}
"""
PEERS = """## Beside other systems

`make bench-peers ARGS=--write` on {date}: {versions} on {machine}.

Each system ran `/bin/true` as a child process {tasks} times for each row, on the same cores, while the
others were up and idle. The others have two worker processes, call `subprocess` in a task and are driven by
their own Python clients. edgeorch is one node with its defaults (token, commits with fsync, captured
output, two slots a core), driven over HTTP. Redis keeps nothing on disk except where a row says so.

{table}
{left_out}
"""
ORIGINAL = """## Beside the original

The figures of edge-home-orchestration-go were measured once, by hand, on two such cores, not by this
harness: 1,000 requests to a node that runs `true`, set up as its documentation says (in brackets without
the look-up of who asks, and so without that check), from a Python client on the same cores. Ours come from
the run above: as many such requests to the same route, committed to disk before the answer.

| `POST /api/v1/orchestration/services` | edge-home-orchestration-go | edgeorch |
| --- | ---: | ---: |
| its README's claim, for its handler | 0.272 ms | |
| one at a time, p50 | 24.7 ms (6.8 ms) | {single_ms} ms |
| one at a time | 38 /s (138 /s) | {single} /s |
| 50 clients | 70 /s (200 /s), p50 586 ms (208 ms) | {crowd} /s |
| answers before it stops for ever | 1,024 | has not: {answered} in that run |
"""


def section(rows: list[Row], **more: Any) -> dict[str, Any]:
    """What a harness measured just now."""
    date = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    return {"date": date, "machine": machine(), **more, "rows": [vars(row) for row in rows]}


def measured(part: str) -> dict[str, Any]:
    """What a harness wrote last."""
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))[part]
    return found


def write(part: str, new: dict[str, Any]) -> None:
    """Replace one part of both files."""
    results = json.loads(RESULTS.read_text("utf-8")) | {part: new}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (HERE / "README.md").write_text(page(results), "utf-8")


def page(results: dict[str, Any]) -> str:
    """All of it for people."""
    pieces = [START]
    if own := results.get("parts"):
        pieces.append(PARTS.format_map(own | {"table": table(own["rows"])}))
    if profile := results.get("profile"):
        pieces.append(PROFILE.format_map(profile | _profile_tables(profile)))
    if membership := results.get("membership"):
        pieces.append(MEMBERSHIP.format_map(membership | {"table": fleet_table(membership["fleets"])}))
    if soak := results.get("soak"):
        share = soak["offered_per_s"] / soak["capacity_per_s"]
        pieces.append(SOAK.format_map(soak | {"share": share, "table": _thirds(soak["thirds"])}))
    if peers := results.get("peers"):
        shown = {
            "table": table(peers["rows"]),
            "versions": ", ".join(f"{name} {text}" for name, text in peers["versions"].items()),
            "tasks": figure(peers["tasks"]),
            "left_out": "".join(f"\nLeft out: {name}, {why}.\n" for name, why in peers["left_out"].items()),
        }
        pieces.append(PEERS.format_map(peers | shown).rstrip() + "\n")
        pieces.append(ORIGINAL.format_map({name: figure(value) for name, value in peers["original"].items()}))
    return "\n".join(pieces)


def table(rows: list[dict[str, Any]]) -> str:
    """The comparisons, a line each."""
    lines = ["| what | edgeorch | against | ratio | goal | |", "| --- | ---: | ---: | ---: | ---: | --- |"]
    for row in (Row(**values) for values in rows):
        verdict = ("met" if row.met else "**missed**") if row.goal else ""
        lines.append(
            f"| {row.what} | {figure(row.ours)} {row.unit} | {row.against}: {figure(row.other)} {row.unit} "
            f"| {row.ratio:.2f} ({row.low:.2f} to {row.high:.2f}) | {row.goal or 'none'} | {verdict} |"
        )
    return "\n".join(lines)


def fleet_table(fleets: list[dict[str, Any]]) -> str:
    """What the membership of a node does in each fleet, the largest part of its time first."""
    layers = sorted(fleets[-1]["layers"], key=lambda name: -fleets[-1]["layers"][name])
    rows = [
        ("messages that it sends, /s", [fleet["messages"] for fleet in fleets]),
        ("links that it opens, /s", [fleet["links"] for fleet in fleets]),
        ("CPU time of a lone node, ms/s", [fleet["cpu"] for fleet in fleets]),
        *((f"of it: {layer}", [fleet["layers"][layer] for fleet in fleets]) for layer in layers),
        ("CPU time where all share a process, ms/s", [fleet["together"] for fleet in fleets]),
    ]
    smallest, *_, largest = zip(*(values for _, values in rows), strict=True)
    ratios = [large / small if small else None for small, large in zip(smallest, largest, strict=True)]
    lines = [(what, [*values, ratio]) for (what, values), ratio in zip(rows, ratios, strict=True)]
    return _columns([*fleets, {"what": "ratio"}], lines)


def _thirds(rows: Sequence[tuple[str, float, float, bool]]) -> str:
    return "\n".join(
        f"| {what} | {figure(first)} | {figure(last)} | {last / first:.2f} | {verdict} |"
        for what, first, last, good in rows
        for verdict in ["flat" if good else "**grows**"]
    )


def _profile_tables(profile: dict[str, Any]) -> dict[str, Any]:
    loads, child = profile["loads"], profile["child_ms"]
    spent = [
        sum(load["cpu"].values()) + (child if load["cpu"]["its runner"] > 0.05 else 0.0) for load in loads
    ]
    cpu = [(who, [load["cpu"][who] for load in loads]) for who in loads[0]["cpu"]]
    cpu += [
        ("all of it, with the child", spent),
        ("so at most, /s", [profile["cpus"] * 1e3 / ms for ms in spent]),
        ("were, /s", [load["rate"] for load in loads]),
    ]
    steps = [
        (text, [load["steps"].get(name) or None for load in loads]) for name, text in profile["steps"].items()
    ]
    seen = [load for load in loads if load["layers"]]
    layers = [
        (layer, [load["layers"][layer] * 100 for load in seen])
        for layer in sorted(seen[0]["layers"], key=lambda name: -seen[0]["layers"][name])
    ]
    return {
        "child": child,
        "at_60": child / 0.6 - child,
        "at_90": child / 0.9 - child,
        "cpu": _columns(loads, cpu),
        "steps": _columns(loads, steps),
        "layers": _columns(seen, layers, " %"),
    }


def _columns(
    loads: list[dict[str, Any]], rows: Sequence[tuple[str, Sequence[float | None]]], unit: str = ""
) -> str:
    lines = ["| | " + " | ".join(load["what"] for load in loads) + " |", "| --- |" + " ---: |" * len(loads)]
    for what, values in rows:
        shown = ("" if value is None else f"{figure(value)}{unit}" for value in values)
        lines.append(f"| {what} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def machine() -> str:
    """What it ran on, and on what."""
    versions = ", ".join(f"{name} {version(name)}" for name in MENTIONED)
    model = next(
        (
            text.partition(":")[2].strip()
            for text in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
            if text.startswith("model name")
        ),
        platform.machine(),
    )
    return (
        f"{os.cpu_count()} x {model}, Linux {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}, {versions}; load {os.getloadavg()[0]:.1f} at the end"
    )
