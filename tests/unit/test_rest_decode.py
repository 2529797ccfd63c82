"""Bodies, queries and hidden values, without a server."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeorch.errors import EdgeorchError, InvalidRequestError, TooManyRequestsError
from edgeorch.rest.compat import OriginalRequest, spec_of
from edgeorch.rest.decode import check_json, decoded, object_of, query_of, submissions_of
from edgeorch.rest.output import OutputQuery
from edgeorch.rest.rates import Rates
from edgeorch.rest.tasks import ListQuery
from edgeorch.rest.views import hidden

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
GOOD = {"name": "a", "service": [{"driver": "native", "argv": ["true"]}]}
FIELDS = [
    "name",
    "service",
    "placement",
    "resources",
    "retry",
    "metadata",
    "timeout_s",
    "driver",
    "argv",
    "env",
]


def refusal(decode, *arguments):
    """The result, or the error that refuses the input; any other exception is a defect."""
    try:
        return decode(*arguments), None
    except (EdgeorchError, msgspec.ValidationError) as error:
        return None, error


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused_as_a_problem(body):
    for decode in (submissions_of, object_of):
        _, error = refusal(decode, body)
        assert error is None or error.extra["path"].startswith("$")


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
@settings(max_examples=300)
def test_any_json_with_our_words_is_taken_or_refused(change):
    body = json.dumps({**GOOD, **change}).encode()
    taken, error = refusal(submissions_of, body)
    assert error is None or error.extra["path"].startswith("$")
    if taken:
        (submission,), batch = taken
        assert not batch
        assert submission.raw == body
        assert msgspec.json.decode(hidden(body)).keys() == json.loads(body).keys()


@given(
    JSON.filter(lambda value: isinstance(value, dict)), st.sampled_from(["ServiceName", "ServiceInfo", "x"])
)
def test_any_object_for_the_original_api(value, name):
    document = {
        "ServiceName": "a",
        "ServiceInfo": [{"ExecutionType": "native", "ExecCmd": ["a"]}],
        name: value,
    }
    refusal(lambda: spec_of(msgspec.convert(document, OriginalRequest)))


@given(
    st.dictionaries(
        st.sampled_from(["state", "limit", "local", "cursor", "tail", "follow", "offset", "x"]),
        st.lists(
            st.text(max_size=8) | st.sampled_from(["1", "true", "running,failed"]), min_size=1, max_size=2
        ),
    )
)
def test_any_query(arguments):
    for kind in (ListQuery, OutputQuery):
        query, error = refusal(query_of, arguments, kind)
        assert isinstance(query, kind) or "query" in error.detail or "parameter" in error.detail


@pytest.mark.parametrize("depth", [10_000, 400_000])
@pytest.mark.parametrize("piece", [b"[", b'{"a":', b'[{"name":'])
def test_deep_nesting_is_bad_input(piece, depth):
    for decode in (submissions_of, object_of):
        with pytest.raises(InvalidRequestError):
            decode(piece * depth)


def test_a_batch_keeps_each_spec_as_it_came():
    body = b' [ {"service":[{"argv":["a"],"driver":"native"}],"name":"x"}, %s]' % json.dumps(GOOD).encode()
    submissions, batch = submissions_of(body)
    assert batch
    assert submissions[0].raw == b'{"service":[{"argv":["a"],"driver":"native"}],"name":"x"}'
    assert submissions[1].raw == json.dumps(GOOD).encode()


def test_the_place_of_malformed_json():
    with pytest.raises(InvalidRequestError, match="line 3, column 2"):
        decoded(b'{"name":\n"a",\n x}', dict)


@pytest.mark.parametrize(
    "media", ["application/json", "Application/JSON; charset=utf-8", "application/a+json"]
)
def test_json_media_types(media):
    check_json(media)


def test_lists_in_queries():
    query = query_of({"state": ["running,failed", "lost"], "limit": ["5"], "local": ["true"]}, ListQuery)
    assert [state.value for state in query.state] == ["running", "failed", "lost"]
    assert (query.limit, query.local) == (5, True)


def test_rates_let_a_second_of_requests_through_and_then_as_many_as_flow_in():
    rates = Rates(3)
    for _ in range(3):
        rates.take("a", 100.0)
    with pytest.raises(TooManyRequestsError):
        rates.take("a", 100.0)
    rates.take("b", 100.0)
    rates.take("a", 100.4)
    with pytest.raises(TooManyRequestsError):
        rates.take("a", 100.4)


def test_no_rate_is_no_limit():
    rates = Rates(0)
    for _ in range(1000):
        rates.take("a", 1.0)
