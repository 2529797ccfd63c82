"""``tokens.toml``: which tokens exist, as hashes. The same file lies on every node of a fleet.

::

    [[token]]
    name = "laptop"
    role = "submit"
    sha256 = "9f86d081…"                  # of the token's text; the text itself is kept nowhere
    created = 2026-01-01T00:00:00Z
    expires = 2027-01-01T00:00:00Z        # optional

A plain hash is enough because the text is 160 random bits: there is nothing to guess from.
"""

import datetime as dt
import hashlib
import re
import secrets
import tomllib
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import msgspec

from edgeorch.errors import ConfigError
from edgeorch.model import Kept, Written

PREFIX = "edgeorch_"
TOKEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
RESERVED = "anonymous"
TokenRole = Literal["read", "submit", "admin"]
TOKEN_ROLES: tuple[TokenRole, ...] = get_args(TokenRole)
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


class Token(Written, frozen=True, kw_only=True):
    """One token, without its text."""

    name: Annotated[str, msgspec.Meta(pattern=rf"^{TOKEN_NAME.pattern}$")]
    role: TokenRole
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    created: Annotated[dt.datetime, msgspec.Meta(tz=True)]
    expires: Annotated[dt.datetime, msgspec.Meta(tz=True)] | None = None

    def expired(self, now: float) -> bool:
        """Whether it is no longer good at ``now``, seconds since the epoch."""
        return self.expires is not None and self.expires.timestamp() <= now


class _File(Kept, frozen=True, kw_only=True):
    token: tuple[Token, ...] = ()


def new_text() -> str:
    """The text of a new token: 32 random base32 characters, 160 bits."""
    return PREFIX + "".join(secrets.choice(_LETTERS) for _ in range(32))


def hash_of(text: str) -> str:
    """What is kept of a token's text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def read_tokens(data: bytes, source: str) -> tuple[Token, ...]:
    """The tokens in a file's content.

    Raises:
        ConfigError: with file, token and reason.
    """
    try:
        tokens = msgspec.convert(tomllib.loads(data.decode("utf-8")), _File).token
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}", hint="make tokens with `edgeorch token create`") from None
    names = [token.name for token in tokens]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice or RESERVED in names:
        wrong = f"the name {twice!r} is used twice" if twice else f"the name {RESERVED!r} is reserved"
        raise ConfigError(f"{source}: {wrong}", hint="every token needs a name of its own")
    return tokens


def write_tokens(tokens: Sequence[Token]) -> bytes:
    """The content of the file; every value is of a kind that needs no quoting."""
    lines = [
        "# Hashes of API tokens. Copy this file to every node of the fleet; changed by `edgeorch token`."
    ]
    for token in tokens:
        lines += ["", "[[token]]", f'name = "{token.name}"', f'role = "{token.role}"']
        lines += [f'sha256 = "{token.sha256}"', f"created = {_time(token.created)}"]
        if token.expires is not None:
            lines.append(f"expires = {_time(token.expires)}")
    return "\n".join([*lines, ""]).encode("ascii")


def _time(moment: dt.datetime) -> str:
    return f"{moment.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
