"""How two things are compared: in turns, at least five times, and judged by the ratio alone.

Absolute times depend on the machine and on what else runs there; a ratio of two that took turns does so less.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: what was measured.
        unit: of ``ours`` and ``other``, such as ``ms`` or ``/s``.
        ours: median of our side.
        against: name of the other side.
        other: its median.
        ratio: median of the rounds' ratios, ours by the other's.
        low: the smallest of them.
        high: the largest.
        goal: such as ``"<= 1.5"``; empty for a figure that is only shown.
    """

    what: str
    unit: str
    ours: float
    against: str
    other: float
    ratio: float
    low: float
    high: float
    goal: str

    @property
    def met(self) -> bool:
        """Whether the ratio meets the goal."""
        if not self.goal:
            return True
        sign, _, bound = self.goal.partition(" ")
        return self.ratio <= float(bound) if sign == "<=" else self.ratio >= float(bound)


def in_turns(sides: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Let all sides measure themselves in turns, in changing order; one turn of each warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds + 1):
        names = [*names[1:], names[0]]
        values = {name: sides[name]() for name in names}
        if number:
            for name, value in values.items():
                found[name].append(value)
    return found


def row(what: str, unit: str, ours: list[float], against: str, other: list[float], *, goal: str = "") -> Row:
    """The comparison of what two sides measured in the same rounds."""
    ratios = sorted(mine / theirs for mine, theirs in zip(ours, other, strict=True))
    return Row(
        what=what,
        unit=unit,
        ours=statistics.median(ours),
        against=against,
        other=statistics.median(other),
        ratio=statistics.median(ratios),
        low=ratios[0],
        high=ratios[-1],
        goal=goal,
    )


def compare(
    what: str,
    unit: str,
    ours: Callable[[], float],
    against: str,
    other: Callable[[], float],
    *,
    goal: str = "",
    rounds: int = ROUNDS,
) -> Row:
    """Let both sides measure themselves in turns."""
    found = in_turns({"ours": ours, "other": other}, rounds)
    return row(what, unit, found["ours"], against, found["other"], goal=goal)


def within(what: str, unit: str, values: list[float], bound: float) -> Row:
    """Not a comparison: a figure that may not be above ``bound``, measured once per round."""
    ratios = sorted(value / bound if bound else value for value in values)
    return Row(
        what=what,
        unit=unit,
        ours=statistics.median(values),
        against="at most",
        other=bound,
        ratio=statistics.median(ratios),
        low=ratios[0],
        high=ratios[-1],
        goal="<= 1" if bound else "<= 0",
    )


def options(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that every comparison takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each side (default {ROUNDS})")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a ratio misses its goal")
    return parser


def show(rows: list[Row], given: argparse.Namespace) -> int:
    """Print the comparisons; the exit code."""
    if given.json:
        print(json.dumps([asdict(row) | {"met": row.met} for row in rows]))
    else:
        for row in rows:
            print(line(row))
    sys.stdout.flush()
    return int(given.strict and not all(row.met for row in rows))


def line(row: Row) -> str:
    """A comparison for people."""
    verdict = f"  goal {row.goal}: {'met' if row.met else 'MISSED'}" if row.goal else ""
    return (
        f"{row.what}: {figure(row.ours)} {row.unit}, {row.against} {figure(row.other)} {row.unit}, "
        f"ratio {row.ratio:.2f} ({row.low:.2f} to {row.high:.2f}){verdict}"
    )


def figure(value: float) -> str:
    """A figure for people."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
