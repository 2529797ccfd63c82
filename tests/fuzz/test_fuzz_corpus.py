"""Everything that ever failed a fuzz target, the good inputs, and a short run of each."""

import random

import pytest
from fuzz import CORPUS, cut_down, failure, fuzz, mutated
from targets import TARGETS, Target

FAILED = [(path.parent.name, path) for path in sorted(CORPUS.glob("*/*"))]


@pytest.mark.parametrize(("name", "path"), FAILED, ids=[f"{name}-{path.name}" for name, path in FAILED])
def test_what_failed_once_is_read_or_refused(name, path):
    assert TARGETS[name].run(path.read_bytes())


@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
@pytest.mark.parametrize("name", TARGETS)
def test_a_few_inputs_of_each_target(name):
    target, rng = TARGETS[name], random.Random(name)
    outcomes = {target.run(data) for data in target.seeds}
    for _ in range(100):
        outcomes.add(target.run(mutated(rng, target.seeds, target.words)))
    # A target whose outcomes are all alike is not reading anything.
    assert len(outcomes) > 1


def test_what_raises_is_found_and_cut_down():
    def picky(data):
        if b"bad" in data:
            raise ValueError(data)
        return data[:3].decode("latin-1")

    target = Target(picky, (b"abc",), (b"b", b"ad"))
    TARGETS["picky"] = target
    try:
        runs, kinds, failures = fuzz("picky", 30, random.Random(5), most=1)
    finally:
        del TARGETS["picky"]
    assert min(runs, kinds) > 1
    ((data, error),) = failures
    assert isinstance(failure(target, data)[1], ValueError)
    assert cut_down(target, data + b"and more", type(error)) == b"bad"
