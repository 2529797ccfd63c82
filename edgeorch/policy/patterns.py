"""Patterns of names and paths, as the lists of the policy write them."""

import re
from pathlib import PurePosixPath


class Glob:
    """A pattern: ``*`` stands for any characters within one part of a path, ``**`` also for slashes.

    Not a regular expression: what it is held against comes from callers, and ``re`` tries every way to share
    a text out among several stars, which are more than anybody can wait for.

    Args:
        pattern: every other character stands for itself.
    """

    def __init__(self, pattern: str) -> None:
        self._parts = [part for part in re.split(r"(\*\*|\*)", pattern) if part]

    def matches(self, text: str) -> bool:
        """Whether it stands for the whole text."""
        return len(text) in self.ends(text)

    def ends(self, text: str) -> set[int]:
        """How many characters from the start of the text it may stand for.

        Takes steps by the product of both lengths at most.
        """
        found = {0}
        for part in self._parts:
            if not found:
                break
            if part == "**":
                found = set(range(min(found), len(text) + 1))
            elif part == "*":
                found = _within_parts(text, found)
            else:
                found = {end + len(part) for end in found if text.startswith(part, end)}
        return found


def covers(pattern: str, path: str) -> bool:
    """Whether the pattern is the path, or a folder that it is in; ``..`` is in nothing."""
    place = PurePosixPath(path)
    if not path.startswith("/") or ".." in place.parts:
        return False
    text = str(place)
    # the root, a folder on the way, or the path itself
    return any(end == 1 or text[end : end + 1] in ("/", "") for end in Glob(pattern).ends(text) - {0})


def _within_parts(text: str, starts: set[int]) -> set[int]:
    """Every place that can be got to from one of them without a slash."""
    found = set[int]()
    inside = False
    for at in range(min(starts), len(text) + 1):
        inside = inside or at in starts
        if inside:
            found.add(at)
        inside = inside and text[at : at + 1] != "/"
    return found
