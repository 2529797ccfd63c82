"""Runs the comparisons one after the other and writes their table.

``python benchmarks/run.py [--quick] [--write] [NAME …]``: each ``bench_NAME.py`` takes turns with what it is
compared with, and only a ratio that misses its goal is a failure. ``--write`` puts the table into
``benchmarks/README.md`` and the numbers into ``benchmarks/results.json``.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _page import section, write
from _rounds import Row, line

HERE = Path(__file__).parent
ALONE = ("node", "runner", "peers")
"""These run by themselves: the first two compare nothing, the last needs what others have made."""


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
        write("parts", section(rows))
    missed = [row.what for row in rows if not row.met]
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
