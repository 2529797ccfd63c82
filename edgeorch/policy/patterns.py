"""Patterns of paths, as the lists of the policy write them."""

import re
from pathlib import PurePosixPath


def glob(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression for ``fullmatch``.

    ``*`` stands for any characters within one part of a path, ``**`` also for slashes.
    """
    stars = {"*": "[^/]*", "**": ".*"}
    parts = re.split(r"(\*\*|\*)", pattern)
    return re.compile("".join(stars.get(part) or re.escape(part) for part in parts))


def covers(pattern: str, path: str) -> bool:
    """Whether the pattern is the path, or a folder that it is in; ``..`` is in nothing."""
    if not path.startswith("/") or ".." in PurePosixPath(path).parts:
        return False
    wanted, place = glob(pattern), PurePosixPath(path)
    return any(wanted.fullmatch(str(folder)) for folder in (place, *place.parents))
