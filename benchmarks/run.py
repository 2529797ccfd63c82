"""Runs the comparisons one after the other and writes their table.

``python benchmarks/run.py [--quick] [--write] [NAME …]``: each ``bench_NAME.py`` takes turns with what it is
compared with, and only a ratio that misses its goal is a failure. ``--write`` puts the table into
``benchmarks/README.md`` and the numbers into ``benchmarks/results.json``: nobody writes either by hand.
"""

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _rounds import Row, line

HERE = Path(__file__).parent
ALONE = ("node", "runner")
"""These show absolute figures and compare nothing: ``make bench`` runs them by themselves."""
MENTIONED = ("trio", "hypercorn", "quart", "quart-trio", "httpx2", "msgspec")
PAGE = """# Benchmarks

Written by `{command}` on {date}; nobody edits this table. Both sides of a row took turns in the same run; the
ratio is the median of the rounds, with the smallest and the largest. Only the ratio is judged.

{machine}.

| what | edgeorch | against | ratio | goal | |
| --- | ---: | ---: | ---: | ---: | --- |
{rows}

`make bench` runs them again and prints the table; `make bench ARGS=--write` writes this page.
"""


def names() -> list[str]:
    """All comparisons."""
    found = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    return [name for name in found if name not in ALONE]


def run(name: str, rounds: int | None) -> list[Row]:
    """One script's comparisons; its talk goes to stderr."""
    argv = [sys.executable, str(HERE / f"bench_{name}.py"), "--json"]
    argv += ["--rounds", str(rounds)] if rounds else []
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench_{name}.py ended with {done.returncode}")
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return [Row(**{key: value for key, value in row.items() if key != "met"}) for row in rows]


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


def page(rows: list[Row], command: str) -> str:
    """The page with the table."""
    lines = [
        f"| {row.what} | {_number(row.ours)} {row.unit} | {row.against}: {_number(row.other)} {row.unit} "
        f"| {row.ratio:.2f} ({row.low:.2f} to {row.high:.2f}) | {row.goal or 'none'} "
        f"| {('met' if row.met else '**missed**') if row.goal else ''} |"
        for row in rows
    ]
    date = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    return PAGE.format(command=command, date=date, machine=machine(), rows="\n".join(lines))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())} (default: all)")
    parser.add_argument("--quick", action="store_true", help="three turns of each side")
    parser.add_argument("--write", action="store_true", help="write README.md and results.json")
    given = parser.parse_args()
    if unknown := set(given.names) - set(names()):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    rows: list[Row] = []
    for name in given.names or names():
        print(f"bench_{name}.py", file=sys.stderr)
        found = run(name, 3 if given.quick else None)
        rows += found
        for row in found:
            print(line(row), flush=True)
    if given.write:
        (HERE / "README.md").write_text(page(rows, "make bench ARGS=--write"), "utf-8")
        (HERE / "results.json").write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n", "utf-8")
    missed = [row.what for row in rows if not row.met]
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
