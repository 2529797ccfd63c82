"""Leave out what a library loads wherever it is installed, and what a small node can do without."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


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


def stand_in(name: str, *classes: str) -> None:
    """Put an empty module in the place of one that a library loads for what is never used here.

    For the life of the process, so it is for the daemon's entry alone. A module that is loaded already stays.

    Args:
        name: the module's full name.
        classes: what is imported from it; making one of them is a mistake of ours.
    """
    if name in sys.modules:
        return
    module = ModuleType(name, f"{name} is left out by {__name__}.")
    module.__path__ = []  # else nothing below it could be imported, and that is left out as well
    for each in classes:
        setattr(module, each, type(each, (_LeftOut,), {"__module__": name}))
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)


class _LeftOut:
    def __init__(self, *_args: object, **_kwargs: object) -> None:
        raise AssertionError(f"{type(self).__module__}.{type(self).__name__} was left out of this process")
