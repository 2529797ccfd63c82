"""Runs the comparisons one after the other and writes their table.

``python benchmarks/run.py [--quick] [--write] [NAME …]``: each ``bench_NAME.py`` takes turns with what it is
compared with, and only a ratio that misses its goal is a failure. ``--write`` puts the table into
``benchmarks/README.md`` and the numbers into ``benchmarks/results.json``; with NAMEs, only their rows are
replaced.
"""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from _page import measured, section, write
from _rounds import Row, line

HERE = Path(__file__).parent
ALONE = ("node", "runner", "peers")
"""These run by themselves: the first two compare nothing, the last needs what others have made."""
LONGEST_S = 600


def names() -> list[str]:
    """All comparisons."""
    found = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    return [name for name in found if name not in ALONE]


def run(name: str, rounds: int | None) -> list[Row]:
    """One script's comparisons; its talk goes to stderr.

    Raises:
        RuntimeError: it failed, or took too long.
    """
    argv = [sys.executable, str(HERE / f"bench_{name}.py"), "--json"]
    argv += ["--rounds", str(rounds)] if rounds else []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as script:
        try:
            said, _ = script.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            # As Ctrl-C does it, so that it ends what it has started.
            script.send_signal(signal.SIGINT)
            script.communicate()
            raise RuntimeError(f"bench_{name}.py took longer than {LONGEST_S} s") from None
    if script.returncode:
        raise RuntimeError(f"bench_{name}.py ended with {script.returncode}")
    rows: list[dict[str, Any]] = json.loads(said.splitlines()[-1])
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
    failed: list[str] = []
    for name in given.names or names():
        print(f"bench_{name}.py", file=sys.stderr)
        try:
            found = run(name, 3 if given.quick else None)
        except RuntimeError as error:
            failed.append(str(error))
            continue
        rows += found
        for row in found:
            print(line(row), flush=True)
    if given.write:
        write("parts", section(_in_place(rows) if given.names else rows))
    missed = [row.what for row in rows if not row.met]
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    if failed:
        print(f"not measured: {'; '.join(failed)}", file=sys.stderr)
    return int(bool(missed or failed))


def _in_place(rows: list[Row]) -> list[Row]:
    """The rows of the page, with those in their place that were measured again, and new ones behind."""
    again = {row.what: row for row in rows}
    before = [Row(**row) for row in measured("parts")["rows"]]
    return [again.pop(row.what, row) for row in before] + list(again.values())


if __name__ == "__main__":
    raise SystemExit(main())
