import msgspec
import pytest

from edgeorch.model import Attempt, AttemptState, NodeInfo, attempt_of


@pytest.mark.parametrize(
    ("key", "number"),
    [
        ("01abc-n.3", 3),
        ("01abc-n.03", 3),
        ("01abc-n.", -1),
        ("01abc-n", -1),
        ("01abc-n.-3", -1),
        ("01abc-n.²", -1),  # a digit, but int() raises
        ("01abc-n.३", -1),
        ("01abc-n." + "9" * 5000, -1),  # so does it here
        ("", -1),
    ],
)
def test_the_number_in_an_attempts_key(key, number):
    assert attempt_of(key)[1] == number


@pytest.mark.parametrize("at", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_time_that_no_calendar_has_is_not_read(at):
    attempt = Attempt(number=1, node="a", node_name="a", state=AttemptState.RUNNING, offered_at=at)
    with pytest.raises(msgspec.ValidationError, match="offered_at"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(attempt), type=Attempt)


@pytest.mark.parametrize("port", [-1, 65_536, 2**64 - 1])
def test_a_port_that_is_none_is_not_read(port):
    info = NodeInfo(id="a", name="a", fleet="f", version="1", wire_port=port)
    with pytest.raises(msgspec.ValidationError, match="wire_port"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(info), type=NodeInfo)
