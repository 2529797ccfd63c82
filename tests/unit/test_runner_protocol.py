"""Frames between daemon and runner."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeorch.runner import protocol

MESSAGES = [
    protocol.Start(id=1, key="a.1", argv=("true",), env={"A": "b"}, output_max=5, lease_s=1.5),
    protocol.Start(id=1, key="a.1", argv=("true",), env={}, output_max=5, most=4),
    protocol.Withdraw(id=6, key="a.1"),
    protocol.Stop(id=2, key="a.1", grace_s=10.0),
    protocol.Forget(id=3, key="a.1"),
    protocol.Renew(leases={"a.1": 9.5}),
    protocol.List(id=4),
]


@given(st.lists(st.sampled_from(MESSAGES)), st.integers(1, 40))
def test_messages_come_out_whole_in_whatever_pieces_they_arrive(messages, size):
    data = b"".join(map(protocol.encode, messages))
    inbox = protocol.requests()
    found = [each for at in range(0, len(data), size) for each in inbox.feed(data[at : at + size])]
    assert found == messages


@given(st.binary(max_size=200))
def test_garbage_is_a_frame_error_or_nothing(data):
    with contextlib.suppress(protocol.FrameError):
        list(protocol.requests().feed(data))


@pytest.mark.parametrize(
    "body",
    [b"\x91" * 100_000, msgspec.msgpack.encode({"type": "Nothing"}), msgspec.msgpack.encode(["Stop"]), b""],
)
def test_what_is_no_message_is_refused(body):
    with pytest.raises(protocol.FrameError):
        list(protocol.requests().feed(len(body).to_bytes(4, "big") + body))


def test_a_frame_over_the_limit_is_refused_before_it_is_read():
    with pytest.raises(protocol.FrameError, match="over the limit"):
        list(protocol.requests().feed((protocol.MAX_FRAME + 1).to_bytes(4, "big")))
    with pytest.raises(protocol.FrameError, match="over the limit"):
        protocol.encode(protocol.Forget(id=1, key="x" * protocol.MAX_FRAME))


def test_an_unknown_field_of_a_newer_version_is_ignored():
    body = msgspec.msgpack.encode({"type": "List", "id": 4, "newer": True})
    assert list(protocol.requests().feed(len(body).to_bytes(4, "big") + body)) == [protocol.List(id=4)]
