import re
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeorch.policy.patterns import Glob, covers

TEXTS = st.text("ab/\n", max_size=12)
PATHS = st.text("ab/.", max_size=12).map(lambda text: f"/{text}")


def expression(pattern):
    stars = {"*": "[^/]*", "**": ".*"}
    parts = re.split(r"(\*\*|\*)", pattern)
    return re.compile("".join(stars.get(part) or re.escape(part) for part in parts), re.DOTALL)


@given(st.text("ab/*", max_size=10), TEXTS)
def test_a_pattern_matches_what_its_regular_expression_does(pattern, text):
    assert Glob(pattern).matches(text) == bool(expression(pattern).fullmatch(text))


@given(st.text("ab/*", max_size=10), PATHS)
def test_a_pattern_covers_what_is_in_a_folder_that_it_matches(pattern, path):
    place = PurePosixPath(path)
    folders = [str(folder) for folder in (place, *place.parents)]
    matched = any(expression(pattern).fullmatch(folder) for folder in folders)
    if not path.startswith("//"):  # which POSIX leaves to each system, and Linux reads as one
        assert covers(pattern, path) == (matched and ".." not in place.parts)


@pytest.mark.parametrize("stars", ["*", "**"])
def test_many_stars_come_to_an_end(stars):
    pattern = Glob(f"{stars}a" * 30 + "b")
    assert not pattern.matches("a" * 200)
    assert pattern.matches("a" * 200 + "b")


def test_a_path_of_many_folders_comes_to_an_end():
    path = "/a" * 200_000
    assert covers("/a/**", path)
    assert not covers("/b/**", path)
    assert not covers("/dev/*", path)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/", ["/", "/a", "/a/b", "//a"], ["a", ""]),
        ("/dev/*", ["/dev/a", "/dev/a/b", "/dev/./a"], ["/dev", "/dev2/a", "/dev/../a"]),
        ("/dev/tty*", ["/dev/tty", "/dev/ttyS0", "/dev/tty/x"], ["/dev/a/tty"]),
        ("/a/**/b", ["/a/x/y/b/c", "/a//x/b"], ["/a/b2"]),
        ("", [], ["/", "/a"]),
        ("*", [], ["/", "/a"]),
    ],
)
def test_what_is_covered(pattern, yes, no):
    assert [path for path in yes if not covers(pattern, path)] == []
    assert [path for path in no if covers(pattern, path)] == []
