"""Runs seeds of the simulation, several at a time, until all are done or the time is over.

    python tests/simulation/simulate.py [--seeds 100] [--first 1] [--minutes 4]
    python tests/simulation/simulate.py --seed 42 --trace     # one of them again, step by step

The same seed gives the same trace, byte for byte, on the same releases of Python and Trio: strings are hashed
without chance (the program starts itself again for that), and Trio's scheduler sorts what it would shuffle.
"""

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import structlog
import trio
import trio.testing
from sim_checks import BrokenError, Checks
from sim_fleet import Plan, simulate


@dataclass(frozen=True)
class Outcome:
    """What became of one seed; ``broken`` is empty where every invariant held."""

    seed: int
    trace: str
    steps: int
    tasks: int
    broken: str


@contextmanager
def _without_chance(seed, checks, show):
    """Trio schedules by the seed alone, and nodes say what is asked for; both as before afterwards."""
    # Trio has this switch for Hypothesis (trio/_core/_run.py); what it adds to its random batches is sorting.
    scheduler, logging = trio._core._run, structlog.get_config()
    before, chance = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(10),
        processors=[checks.log, *logging["processors"]],
    )
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before
        scheduler._r.setstate(chance)
        structlog.configure(**logging)


def run(seed, show=None):
    """Simulate one seed in this process, which must hash strings without chance."""
    checks, broken = Checks(show), ""
    with _without_chance(seed, checks, show), tempfile.TemporaryDirectory(prefix="edgeorch-sim-") as folder:
        try:
            clock = trio.testing.MockClock(autojump_threshold=0)
            trio.run(simulate, Path(folder), Plan.of(seed), checks, clock=clock)
        except BaseExceptionGroup as group:
            first = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            if not isinstance(first, BrokenError):
                raise
            broken = str(first)
    tasks = sum(map(len, checks.accepted.values()))
    return Outcome(seed, checks.digest(), checks.steps, tasks, broken)


def timed(seed):
    """An outcome, and the CPU seconds that it took."""
    began = time.process_time()
    return run(seed), time.process_time() - began


def main(options):
    """Run what was asked for; 1 where a seed broke something."""
    if options.seed is not None:
        outcome = run(options.seed, print if options.trace else None)
        print(f"{Plan.of(options.seed)}\n{outcome}")
        return 1 if outcome.broken else 0
    began, outcomes, took_s = time.monotonic(), [], {}
    enough = began + options.minutes * 60
    seeds = iter(range(options.first, options.first + options.seeds))
    with ProcessPoolExecutor(options.jobs, max_tasks_per_child=20) as pool:
        running = {pool.submit(timed, seed) for seed in islice(seeds, options.jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for outcome, seconds in (future.result() for future in done):
                outcomes.append(outcome)
                took_s[outcome.seed] = seconds
                if outcome.broken:
                    print(f"seed {outcome.seed}: {outcome.broken}")
                    print(f"  again: make sim SEED={outcome.seed}", flush=True)
                if sys.stderr.isatty():
                    print(f"\r{len(outcomes)}/{options.seeds} seeds", end="", file=sys.stderr)
            if time.monotonic() < enough:
                running |= {pool.submit(timed, seed) for seed in islice(seeds, len(done))}
    broken = [outcome.seed for outcome in outcomes if outcome.broken]
    tasks, steps = sum(o.tasks for o in outcomes), sum(o.steps for o in outcomes)
    took = time.monotonic() - began
    last = max(outcome.seed for outcome in outcomes)
    print(
        f"{len(outcomes)} seeds ({options.first} to {last}), {tasks} accepted tasks, "
        f"{steps} steps in {took:.0f} s"
    )
    slowest = max(took_s, key=took_s.__getitem__)
    print(f"slowest: seed {slowest}, {Plan.of(slowest).nodes} nodes, {took_s[slowest]:.0f} s of CPU")
    print(f"broken: {broken or 'none'}")
    return 1 if broken else 0


def deterministic():
    """Whether this process hashes strings without chance."""
    return os.environ.get("PYTHONHASHSEED") == "0"


if __name__ == "__main__":
    if not deterministic():
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--first", type=int, default=1, help="the first of them (default 1)")
    parser.add_argument("--minutes", type=float, default=60, help="start none after this time (default 60)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one per CPU)")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--trace", action="store_true", help="with --seed: print each step")
    sys.exit(main(parser.parse_args()))
