"""How the rules say no."""

from typing import Protocol

from edgeorch.errors import PolicyError


class Refuse(Protocol):
    """Makes a refusal; the policy knows whose node it is."""

    def __call__(self, key: str, detail: str, what: str, *, rule: str = "") -> PolicyError:
        """A refusal by ``key``: a sentence, what to do about it, and see ``PolicyError.rule``."""
        ...
