"""Changes good input at random and looks for what raises: ``make fuzz SECONDS=60``.

There is no coverage to steer by; what steers is the outcome: an input that is read, or refused, in a way
that was not seen before is kept and changed further. An input that raises, or takes longer than
``LONGEST_S``, is cut down, written to ``corpus/TARGET/`` and replayed by the tests for ever.
"""

import argparse
import hashlib
import random
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")
LONGEST_S = 1.0
"""CPU time of one input; thousands of times what they take, on any machine."""
LARGEST = 20_000
KEPT = 2000
CUTTING_S = 10.0


class TooLongError(Exception):
    """An input that does not come to an end."""


def mutated(rng, pool, words):  # noqa: C901  a list of ways
    """One of the inputs, changed in a few places."""
    data = bytearray(rng.choice(pool))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 16, 64)))
        match rng.randrange(9):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.choice((0, 1, 0x20, 0x2D, 0x30, 0x7F, 0x80, 0xFF))
            case 2:
                data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8)))
            case 3:
                del data[at:end]
            case 4:
                data[at:at] = data[at:end] * rng.choice((1, 1, 2, 10))
            case 5:
                other = rng.choice(pool)
                data[at:] = other[rng.randrange(len(other) + 1) :]
            case 6:
                other = rng.choice(pool)
                start = rng.randrange(len(other) + 1)
                data[at:end] = other[start : start + 32]
            case 7 if words:
                data[at:end] = rng.choice(words)
            case _ if words:
                data[at:at] = rng.choice(words)
    return bytes(data[:LARGEST])


def failure(target, data):
    """(outcome, None), or ("", what the input raises)."""
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        return target.run(data), None
    except Exception as error:  # noqa: BLE001  finding these is the purpose
        return "", error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def cut_down(target, data, kind):
    """The shortest input found that raises the same kind of exception."""
    end, size = time.monotonic() + CUTTING_S, max(len(data) // 2, 1)
    while size and time.monotonic() < end:
        at = 0
        while at < len(data) and time.monotonic() < end:
            shorter = data[:at] + data[at + size :]
            if type(failure(target, shorter)[1]) is kind:
                data = shorter
            else:
                at += size
        size //= 2
    return data


def fuzz(name, seconds, rng, most=20):
    """Fuzz one target; (executions, kinds of outcome, failures as (input, exception), ``most`` at most)."""
    target, seen, failures = TARGETS[name], set(), {}
    pool = [b"", *target.seeds, *corpus_of(name)]
    first = list(pool)
    end, runs = time.monotonic() + seconds, 0
    while time.monotonic() < end and len(failures) < most:
        data = first.pop() if first else mutated(rng, pool, target.words)
        outcome, error = failure(target, data)
        runs += 1
        if error is not None:
            where = traceback.extract_tb(error.__traceback__)[-1]
            failures.setdefault((type(error), where.filename, where.lineno), (data, error))
        elif outcome not in seen:
            seen.add(outcome)
            if len(pool) < KEPT:
                pool.append(data)
    return runs, len(seen), list(failures.values())


def corpus_of(name):
    """Inputs of this target that failed once."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def keep(name, data, error):
    """Cut the input down and write it to the corpus."""
    data = cut_down(TARGETS[name], data, type(error))
    path = CORPUS / name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def too_long(*_):
    raise TooLongError(f"not done after {LONGEST_S:g} s")


def main(options):
    """Fuzz the targets one after the other, each for its share of the time."""
    signal.signal(signal.SIGPROF, too_long)
    names = options.target or list(TARGETS)
    total = failed = 0
    shares = sum(TARGETS[name].share for name in names)
    for name in names:
        seconds = options.seconds * TARGETS[name].share / shares
        runs, kinds, failures = fuzz(name, seconds, random.Random(f"{options.seed} {name}"))
        total += runs
        failed += len(failures)
        print(
            f"{name:<12} {runs:>8} executions, {kinds:>4} kinds of outcome, {len(failures)} failures",
            flush=True,
        )
        for data, error in failures:
            path = keep(name, data, error)
            print(
                "".join(traceback.format_exception(error)),
                f"kept as {path}: {path.read_bytes()[:300]!r}",
                sep="\n",
            )
    print(f"fuzz executions: {total}, failures: {failed}, targets: {len(names)}, seed: {options.seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="*", choices=[[], *TARGETS], help="only these")
    parser.add_argument("--seconds", type=float, default=60.0, help="in all")
    parser.add_argument(
        "--seed", type=int, default=time.time_ns(), help="repeats a run, where the time is the same"
    )
    sys.exit(main(parser.parse_args()))
