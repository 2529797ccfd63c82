"""How well tasks are placed by what a node knows, against an oracle that knows all of the fleet at once.

100 machines of four cores and eight slots, the fastest eight times as fast as the slowest; tasks of one core
each come to eight of them at 0.8 of what all cores can do. Samples are 1 s old on average. A task's slowdown
is the time from its acceptance to its end by the time that it takes on an idle core of the fastest machine;
a figure is the mean over the measured tasks of a run. All of it happens in virtual time, with the product's
own ranking, books, queue and slots (``_placement.py``); both sides get the same tasks at the same times.

The oracle gives a task to the fastest machine with an idle core, else to that where it gets most of one.
"""

import itertools
from collections.abc import Callable

from _placement import slowdown
from _rounds import compare, options, show

from edgeorch.config import Log
from edgeorch.logs import set_up

SIZES = ((3.0, "tasks of 3 s"), (0.5, "tasks of 0.5 s"))


def turns(policy: str, tasks: int, mean_s: float) -> Callable[[], float]:
    """Each turn is a run with other tasks, the same for all policies."""
    seeds = itertools.count(1)
    return lambda: slowdown(policy, next(seeds), tasks, mean_s)


def main() -> int:
    """Compare the product, the original's formula and chance with the oracle."""
    parser = options(__doc__)
    parser.add_argument("--tasks", type=int, default=400, help="measured in each turn (default 400)")
    given = parser.parse_args()
    set_up(Log(level="error"))
    sides = (
        ("edgeorch", "mean slowdown, {size}", "<= 1.25"),
        ("one origin", "the same where one node takes all tasks", ""),
        ("baobab", "the same by the original's formula", ""),
        ("random", "the same by chance", ""),
    )
    rows = [
        compare(
            text.format(size=size) if policy == "edgeorch" else f"{text}, {size}",
            "x",
            turns(policy, given.tasks, mean_s),
            "an oracle",
            turns("oracle", given.tasks, mean_s),
            goal=goal,
            rounds=given.rounds,
        )
        for mean_s, size in SIZES
        for policy, text, goal in sides
    ]
    return show(rows, given)


if __name__ == "__main__":
    raise SystemExit(main())
