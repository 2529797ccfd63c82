"""``edgeorch token``: who may use the REST API. The file holds hashes; a token is shown once."""

import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from edgeorch import config, files
from edgeorch.cli.keys import HOME, fleet_folder
from edgeorch.cli.options import as_json
from edgeorch.cli.show import json_line, say, table
from edgeorch.errors import ConflictError, InvalidRequestError, NotFoundError
from edgeorch.rest.tokens import (
    RESERVED,
    TOKEN_NAME,
    TOKEN_ROLES,
    Token,
    TokenRole,
    hash_of,
    new_text,
    read_tokens,
    write_tokens,
)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_LONGEST_S = 100 * _UNITS["y"]
_COPY = "Next: copy {path} to /etc/edgeorch/tokens.toml on every node; it counts there within a second."

_file = click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path),
    help="tokens.toml (default: this node's, else the one beside the fleet's CA in .edgeorch).",
)


@click.group()
def token() -> None:
    """Make, list and revoke API tokens."""


@token.command()
@click.option("--name", required=True, help="Who or what uses it; shown with its tasks.")
@click.option("--role", required=True, type=click.Choice(TOKEN_ROLES), help="What it may do.")
@click.option("--expires", metavar="TIME", help="90d, 12h, 1y, …; never where left out.")
@_file
@as_json
def create(*, name: str, role: TokenRole, expires: str | None, path: Path | None, as_json: bool) -> None:
    """Make a token and print it, once."""
    if not TOKEN_NAME.fullmatch(name) or name == RESERVED:
        hint = f"1 to 63 letters, digits and . _ @ -, not `{RESERVED}`"
        raise InvalidRequestError(f"{name!r} cannot name a token", hint=hint)
    path, text = path or _default_file(), new_text()
    created = datetime.now(UTC).replace(microsecond=0)
    until = created + _duration(expires) if expires else None
    fresh = Token(name=name, role=role, sha256=hash_of(text), created=created, expires=until)
    files.make_folder(path.parent, 0o755)
    with files.locked(path.parent):
        tokens = _read(path)
        if any(other.name == name for other in tokens):
            hint = f"`edgeorch token revoke {name}` first, or choose another name"
            raise ConflictError(f"{path} already has a token named {name!r}", hint=hint)
        files.write(path, write_tokens((*tokens, fresh)), 0o640)
    say(f"Token {name} ({role}) is in {path}, as a hash. This is the only time that it is shown:")
    if as_json:
        json_line({**_row(fresh, time.time()), "token": text, "file": str(path)})
    else:
        click.echo(text)
    _say_next(path)


@token.command("list")
@_file
@as_json
def list_(*, path: Path | None, as_json: bool) -> None:
    """List the tokens."""
    now = time.time()
    rows = [_row(token, now) for token in _read(path or _default_file())]
    if as_json:
        json_line({"tokens": rows})
        return
    columns = ("name", "role", "state", "created", "expires")
    table([column.upper() for column in columns], [[row[c] or "never" for c in columns] for row in rows])


@token.command()
@click.argument("name")
@_file
@as_json
def revoke(*, name: str, path: Path | None, as_json: bool) -> None:
    """Remove the token NAME; what uses it is refused from then on."""
    path = path or _default_file()
    with files.locked(path.parent):
        tokens = _read(path)
        left = [token for token in tokens if token.name != name]
        if len(left) == len(tokens):
            raise NotFoundError(
                f"{path} has no token named {name!r}", hint="`edgeorch token list` shows them"
            )
        files.write(path, write_tokens(left), 0o640)
    say(f"Token {name} is revoked in {path}.")
    _say_next(path)
    if as_json:
        json_line({"name": name, "state": "revoked", "file": str(path)})


def _default_file() -> Path:
    """This node's file where this machine is a node, else the one that the controller keeps for its fleet."""
    if config.DEFAULT_PATH.exists() or not any(HOME.glob("*/index.json")):
        loaded = config.load()
        return loaded.resolve(loaded.config.api.tokens)
    return fleet_folder(None) / "tokens.toml"


def _read(path: Path) -> tuple[Token, ...]:
    return read_tokens(files.read_optional(path, "the tokens") or b"", str(path))


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,12})([smhdwy])", text)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= _LONGEST_S:
        raise click.UsageError(f"--expires {text!r} is not a duration: 12h, 90d, 1y, at most 100y")
    return timedelta(seconds=seconds)


def _say_next(path: Path) -> None:
    say(_COPY.format(path=path))


def _row(token: Token, now: float) -> dict[str, str | None]:
    return {
        "name": token.name,
        "role": token.role,
        "state": "expired" if token.expired(now) else "valid",
        "created": f"{token.created:%Y-%m-%dT%H:%M:%SZ}",
        "expires": f"{token.expires:%Y-%m-%dT%H:%M:%SZ}" if token.expires else None,
    }
