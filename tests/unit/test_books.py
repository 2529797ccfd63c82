"""What a node knows better than another's newest sample."""

import msgspec
import pytest
from membership_world import node_info, sample

from edgeorch.dispatch.books import KEPT_S, Books
from edgeorch.model import Peer, PeerState, Resources, TaskSpec
from edgeorch.scheduler import busy
from edgeorch.scoring import Promised, score

PEER = Peer(info=node_info("n000000000"), state=PeerState.ALIVE, since=0.0, sample=sample())
NODE = PEER.info.id


def at(moment):
    """The node as its sample of this moment shows it."""
    return msgspec.structs.replace(PEER, sample_at=moment)


@pytest.fixture
def books():
    return Books()


def test_what_was_placed_counts_until_a_sample_shows_it(books):
    assert books.on(at(0.0)) == Promised()
    books.promise("a", NODE, Resources(cpus=1, memory=5))
    books.promise("b", NODE, Resources(cpus=2))
    assert books.on(at(0.0)) == Promised(2, 3.0, 5)
    books.accepted("a", 1.0)
    assert books.on(at(1.0)) == Promised(2, 3.0, 5)
    assert books.on(at(1.1)) == Promised(1, 2.0, 0)
    assert books.on(at(0.9)) == Promised(2, 3.0, 5)


def test_an_answer_with_a_sample_counts_it_already(books):
    books.promise("a", NODE, Resources(cpus=1))
    books.accepted("a", 1.0, shown=True)
    assert books.on(at(1.0)) == Promised()


def test_what_has_ended_is_counted_off_until_a_sample_without_it_comes(books):
    books.promise("a", NODE, Resources(cpus=1, memory=5))
    books.promise("b", NODE, Resources())
    books.accepted("a", 1.0)
    books.accepted("b", 1.0)
    books.ended("a", 3.0)
    assert books.on(at(2.0)) == Promised(ended=1, ended_cpus=1.0)
    assert books.on(at(3.1)) == Promised()
    books.ended("b", 4.0)
    assert books.on(at(4.1)) == Promised()
    assert not books.pages


def test_what_no_sample_has_shown_leaves_nothing(books):
    books.promise("a", NODE, Resources())
    books.promise("b", NODE, Resources())
    books.accepted("a", 1.0)
    books.ended("a", 2.0)
    books.ended("b", 2.0)  # its end was faster than the answer to the offer
    assert books.on(at(0.5)) == Promised()
    assert not books.pages


def test_a_task_that_is_placed_elsewhere_has_one_line(books):
    books.promise("a", NODE, Resources())
    books.promise("a", "other00000", Resources())
    assert books.on(at(0.0)) == Promised()
    books.release("a")
    books.release("a")
    assert not books.pages


def test_the_sums_are_the_same_object_until_something_changes(books):
    books.promise("a", NODE, Resources())
    before = books.on(at(0.0))
    assert books.on(at(0.0)) is before
    books.promise("b", NODE, Resources())
    assert books.on(at(0.0)) is not before


def test_an_end_elsewhere_is_told_and_forgotten_although_nobody_looks(books):
    told = []
    books.on_free = lambda: told.append(1)
    for number in range(100):
        books.promise(f"t{number}", NODE, Resources())
        books.accepted(f"t{number}", float(number))
        books.ended(f"t{number}", number + 0.5)
    books.promise("t0", NODE, Resources())  # again: its old end is none of the new line's
    books.promise("z", "other00000", Resources())
    books.accepted("z", 200.0)
    books.ended("z", 200.0 + KEPT_S)
    assert len(told) == 101
    assert set(books.pages[NODE].lines) == {"t0"}


def test_a_node_is_as_free_as_it_would_be_without_what_has_ended():
    spec = TaskSpec(name="x", service=())
    full = sample(slots=4, slots_used=4, cpus_wanted=4.0, cpus_promised=4.0)
    half = sample(slots=4, slots_used=2, cpus_wanted=2.0, cpus_promised=2.0)
    ended = Promised(ended=2, ended_cpus=2.0)
    peer = msgspec.structs.replace(PEER, sample=full)
    assert "slots" in busy(Resources(), peer, Promised())
    assert busy(Resources(), peer, ended) == ""
    after = score(PEER.info, full, 0.0, spec, ended)
    assert after.value == pytest.approx(score(PEER.info, half, 0.0, spec).value)
    assert "2 of 4 slots used" in after.reasons


def test_what_waits_for_something_frees_no_more_than_it_used():
    full = sample(slots=4, slots_used=4, cpus_wanted=0.4)
    one = score(PEER.info, full, 0.0, None, Promised(ended=1)).value
    assert one == pytest.approx(score(PEER.info, sample(slots_used=3, cpus_wanted=0.3), 0.0).value)
