"""Leave out what a library loads wherever it is installed, and what a small node can do without."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(name: str) -> Iterator[None]:
    """Let imports of a package fail inside the block, as if it were not installed.

    For packages that a library itself treats as optional. One that is loaded already stays. ``None`` in
    ``sys.modules`` is how Python is told (docs.python.org/3/reference/import.html, "The module cache").

    Args:
        name: the top-level package.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # see above
    try:
        yield
    finally:
        del sys.modules[name]
