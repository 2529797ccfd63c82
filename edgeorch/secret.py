"""A secret of a task on its way through the program: shown nowhere, not even by ``repr``."""

import re

import msgspec

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
"""Safe as the name of a file."""
MAX_COUNT = 32
MAX_BYTES = 128 << 10
"""Of all secrets of one task: with them, an offer still fits into one frame between nodes."""
VARIABLE = "EDGEORCH_SECRETS"
"""Names the folder of its secrets to a service."""


class Secret(msgspec.Struct, frozen=True, array_like=True, repr_omit_defaults=True):
    """The content of one file."""

    value: bytes

    def __repr__(self) -> str:
        """Nothing that a log or a traceback could give away."""
        return "Secret(***)"


def size_of(secrets: dict[str, Secret]) -> int:
    """Bytes of all of them."""
    return sum(len(secret.value) for secret in secrets.values())
