import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeorch.constraints import holds, parse
from edgeorch.errors import ConstraintError
from edgeorch.model import NodeInfo

NODE = NodeInfo(
    id="0123456789",
    name="kitchen-1",
    fleet="home",
    version="0.10.2",
    arch="arm64",
    os="linux",
    cpus=4,
    memory=4 << 30,
    drivers={"native": "1", "container": "28"},
    labels={"zone": "kitchen", "rack": "10", "empty": ""},
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arch == arm64", True),
        ("arch != arm64", False),
        ("arch == arm64 and labels.zone == kitchen", True),
        ("arch == amd64 or labels.zone == kitchen", True),
        ("arch == amd64 or labels.zone == attic and os == linux", False),
        ("(arch == amd64 or labels.zone == kitchen) and os == linux", True),
        ("not arch == amd64", True),
        ("not (arch == arm64 and os == linux)", False),
        ("memory >= 2G", True),
        ("memory > 4GiB", False),
        ("memory == 4294967296", True),
        ("cpus > 3.5", True),
        ("version > 0.9.1", True),
        ("version == 0.10.2", True),
        ("version < 0.10.10", True),
        ("labels.rack > 9", True),
        ("drivers == container", True),
        ("drivers != container", False),
        ("drivers == wasm", False),
        ("arch in (amd64, arm64)", True),
        ("cpus in (1, 2)", False),
        ('name matches "kitchen-[0-9]+"', True),
        ("name matches kitchen", False),
        ("labels.missing == x", False),
        ("labels.missing != x", False),
        ("not labels.missing == x", True),
        ('labels.empty == ""', True),
        ("labels.zone == 'kitchen'", True),
    ],
)
def test_meaning(text, expected):
    assert holds(parse(text), NODE) is expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "an attribute at the end"),
        ("arch", "expected =="),
        ("arch ==", "a value at the end"),
        ("arch = arm64", "unexpected '='"),
        ("cpu == 4", "unknown attribute 'cpu'"),
        ("labels. == x", "unknown attribute"),
        ("arch == arm64 os == linux", "position 15"),
        ("(arch == arm64", "')'"),
        ("cpus > many", "needs a number"),
        ("arch in arm64", "'('"),
        ("arch in (arm64", "')'"),
        ('name matches "["', "unterminated"),
        ('name matches "(a+)+b"', "repeats too much"),
        ('name matches "a{9999999999}"', "repetition number is too large"),
        (f'name matches "{"(" * 33}{")" * 33}"', "more than 32 groups"),
        ('name matches ".*.*.*.*x"', "repeats too much"),
        ("not " * 40 + "arch == x", "nested deeper"),
        ("(" * 500 + "arch == x" + ")" * 500, "nested deeper"),
        ("arch == " + "x" * 2000, "characters"),
    ],
)
def test_mistakes_are_named(text, says):
    with pytest.raises(ConstraintError, match=None) as caught:
        parse(text)
    assert says in str(caught.value)


WORDS = [
    "arch",
    "cpus",
    "labels.zone",
    "==",
    "!=",
    "<",
    "in",
    "matches",
    "(",
    ")",
    ",",
    "and",
    "or",
    "not",
    "x",
]


@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=20).map(" ".join))
def test_any_text_parses_or_is_refused(text):
    try:
        expression = parse(text)
    except ConstraintError:
        return
    assert holds(expression, NODE) in (True, False)
