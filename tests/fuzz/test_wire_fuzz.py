"""Bytes of every kind against the frame decoder, and against a link that is up."""

import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeorch.errors import EdgeorchError, WireError, problem_types
from edgeorch.model import AttemptState, Caller
from edgeorch.wire import codec, frames
from edgeorch.wire.frames import MAX_FRAME, FrameBuffer, Kind
from edgeorch.wire.messages import (
    TYPES,
    Chunk,
    Failure,
    FindRuns,
    FollowOutput,
    GetTask,
    Report,
    ReportTaken,
    RunState,
)

MESSAGES = (
    FindRuns(task_ids=("a", "b")),
    Report(run=RunState(key="k.1", state=AttemptState.RUNNING, started_age_s=1.5, stdout_tail=b"\xff")),
    GetTask(caller=Caller(token="t", role="read"), task_id="x"),
    FollowOutput(caller=Caller(token="t", role="read"), task_id="x", attempt=2),
    Chunk(stream="stdout", offset=3, data=b"abc"),
    Failure(slug="conflict", detail="é"),
)


def read(data, cuts=()):
    """Every frame and body in the bytes, fed in pieces; only EdgeorchError may come out."""
    buffer, got, position = FrameBuffer(), [], 0
    for cut in (*sorted(cuts), len(data)):
        for frame in buffer.feed(data[position:cut]):
            try:
                got.append((frame.kind, frame.id, codec.body(frame)))
            except EdgeorchError as error:
                got.append(error)
            frames.time_left(frame)
        position = max(position, cut)
    return got


def framed(body):
    return struct.pack(">I", len(body)) + body


def survive(data, cuts=()):
    try:
        return read(data, cuts)
    except WireError:
        return None


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000)))
def test_any_bytes_give_frames_or_a_wire_error(data, cuts):
    survive(data, cuts)


@given(st.binary(max_size=500), st.sampled_from(sorted(TYPES)))
def test_any_body_of_any_type_gives_a_message_or_a_wire_error(body, name):
    survive(framed(b"\x95\x03\x01\xc0" + msgspec.msgpack.encode(name) + body))
    survive(framed(body))


@given(st.sampled_from(MESSAGES), st.lists(st.integers(0, 400), max_size=8))
def test_a_frame_survives_any_cutting(message, cuts):
    data = bytes(frames.encode(Kind.REQUEST, 7, message, 1.5) + frames.encode(Kind.ANSWER, 8, message))
    assert read(data, [min(cut, len(data)) for cut in cuts]) == [
        (Kind.REQUEST, 7, message),
        (Kind.ANSWER, 8, message),
    ]


@settings(max_examples=500)
@given(
    st.sampled_from(MESSAGES),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=5),
    st.integers(0, 400),
)
def test_a_damaged_frame_gives_a_frame_or_a_wire_error(message, damage, length):
    data = frames.encode(Kind.REQUEST, 7, message, 1.5)
    for position, value in damage:
        data[position % len(data)] = value
    survive(bytes(data))
    survive(bytes(data[:length]) + b"\0" * 16)
    # The same with a length that is right, so that the damage reaches the decoder.
    survive(framed(bytes(data[4:])))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=10)
    | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_any_object_as_a_frame(value):
    survive(framed(msgspec.msgpack.encode(value)))


@given(st.sampled_from(sorted(TYPES)), JSON, st.floats() | st.integers(-5, 2**63) | st.none())
def test_any_object_as_a_body(name, value, left):
    survive(framed(msgspec.msgpack.encode([2, 1, left, name, value])))


@given(st.sampled_from(sorted(TYPES)), st.data())
def test_any_value_for_any_field(name, data):
    fields = TYPES[name].__struct_fields__
    value = {field: data.draw(JSON) for field in fields}
    survive(framed(msgspec.msgpack.encode([2, 1, None, name, value])))


@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1a", b"\xdc\x00\x01", b"\xdf\x00\x00\x00\x01\xa1a"])
@pytest.mark.parametrize("where", ["frame", "body", "unknown field", "extra element"])
def test_deep_nesting_is_bad_input(opener, where):
    deep = opener * ((MAX_FRAME - 100) // len(opener)) + b"\xc0"
    before = {
        "frame": b"",
        "body": b"\x95\x02\x01\xc0\xa8FindRuns",
        "unknown field": b"\x95\x02\x01\xc0\xa8FindRuns\x81\xa4deep",
        "extra element": b"\x96\x02\x01\xc0\xa8FindRuns\x80",
    }[where]
    with pytest.raises(WireError):
        read(framed(before + deep))


@pytest.mark.parametrize("size", [0, MAX_FRAME + 1, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_before_the_bytes_come(size):
    with pytest.raises(WireError, match=str(size)):
        read(struct.pack(">I", size))


@pytest.mark.parametrize("header", [b"\xdd", b"\xdf"])
@pytest.mark.parametrize("count", [2**20, 2**31, 2**32 - 1])
def test_a_huge_count_costs_no_memory(header, count):
    body = b"\x81\xa8task_ids" + header + struct.pack(">I", count)
    with pytest.raises(WireError):
        read(framed(b"\x95\x02\x01\xc0\xa8FindRuns" + body))


def test_a_whole_frame_of_the_greatest_size_passes():
    message = Chunk(stream="stdout", offset=0, data=b"x" * (MAX_FRAME - 100))
    data = bytes(frames.encode(Kind.ITEM, 1, message))
    assert read(data, range(0, len(data), 16384)) == [(Kind.ITEM, 1, message)]


def test_a_message_that_is_too_large_leaves_the_buffer_as_it_was():
    buffer = frames.encode(Kind.CANCEL, 1)
    before = bytes(buffer)
    with pytest.raises(WireError):
        frames.append(buffer, Kind.ITEM, 1, Chunk(stream="stdout", offset=0, data=b"x" * MAX_FRAME))
    assert buffer == before


def test_a_failure_with_an_unknown_slug_is_an_edgeorch_error():
    error = codec.as_error(Failure(slug="from-the-future", detail="d", hint="h"))
    assert type(error) is EdgeorchError
    assert str(error) == "d (h)"


@pytest.mark.parametrize("slug", sorted(problem_types()))
def test_every_expected_error_crosses_the_wire(slug):
    error = codec.as_error(Failure(slug=slug, detail="d", hint="h"))
    assert error.slug == slug
    assert codec.as_failure(error) == Failure(slug=slug, detail="d", hint="h")


def test_an_answer_to_another_request_is_a_wire_error():
    frame = frames.decode(bytes(frames.encode(Kind.ANSWER, 1, ReportTaken(sequence=1))[4:]))
    with pytest.raises(WireError, match="no answer to FindRuns"):
        codec.answer(frame, FindRuns)
