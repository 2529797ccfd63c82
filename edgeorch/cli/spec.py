"""From words on a command line, or a file, to a task spec."""

import os
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import click
import msgspec

from edgeorch.errors import InvalidRequestError
from edgeorch.secret import NAME

UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
TIMES = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Size(click.ParamType["int"]):
    """Bytes: ``65536``, ``512M``, ``2GiB``."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Text as bytes; a number stays."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([bkmgt]?)(?:i?b)?", str(value).strip().lower())
        if not match:
            self.fail(f"{value!r} is not a size like 512M", param, ctx)
        return int(float(match[1]) * UNITS[match[2]])


class Duration(click.ParamType["float"]):
    """Seconds: ``90``, ``1.5s``, ``10m``, ``2h``."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Text as seconds; a number stays."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|)", str(value).strip().lower())
        if not match or not float(match[1]):
            self.fail(f"{value!r} is not a time like 90s or 10m", param, ctx)
        return float(match[1]) * TIMES[match[2]]


def service_of(
    image: str | None, env: Sequence[str], options: Sequence[str], words: Sequence[str]
) -> dict[str, Any]:
    """One service: a container where there is an image, else a program of the node.

    Raises:
        click.UsageError: something is missing or does not fit.
    """
    for pair in env:
        if not re.match(r"[^=\s]+=", pair):
            raise click.UsageError(f"--env {pair!r}: write NAME=VALUE")
    if image:
        given = [word for pair in env for word in ("-e", pair)]
        return {"driver": "container", "image": image, "options": [*given, *options], "args": list(words)}
    if options:
        raise click.UsageError("--option is for containers; it needs --image")
    if not words:
        raise click.UsageError("nothing to run: write the command after --, or give --image")
    return {"driver": "native", "argv": list(words), "env": dict(pair.split("=", 1) for pair in env)}


def name_of(image: str | None, words: Sequence[str]) -> str:
    """A name for a task that was given none: its image's or program's."""
    text = PurePosixPath(image.split("@")[0]).name.split(":")[0] if image else PurePosixPath(words[0]).name
    return text[:128] or "task"


def secrets_of(given: Sequence[str]) -> dict[str, bytes]:
    """Secrets by name, from ``NAME=FILE``, ``NAME=-`` for stdin, or ``NAME`` for a variable.

    Raises:
        click.UsageError: a name that is none, no such variable, or stdin twice.
        InvalidRequestError: a file cannot be read.
    """
    found: dict[str, bytes] = {}
    if sum(text.partition("=")[2] == "-" for text in given) > 1:
        raise click.UsageError("--secret: stdin can be read once")
    for text in given:
        name, equals, path = text.partition("=")
        # What is wrong may be the secret itself, so the text is not shown.
        if not NAME.fullmatch(name):
            raise click.UsageError("--secret: write NAME=FILE; a name has letters, digits, '_', '-' and '.'")
        if not equals and name not in os.environ:
            raise click.UsageError(f"--secret {name}: there is no such variable; or write {name}=FILE")
        found[name] = _read(path) if equals else os.environb[name.encode()]
    return found


def _read(path: str) -> bytes:
    """The content of a file or, for ``-``, of stdin.

    Raises:
        InvalidRequestError: it cannot be read.
    """
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror}", hint="check the path") from None


def read_spec(path: str) -> Any:  # noqa: ANN401  what is in the file: the node checks it
    """A spec, or a list of them, from a JSON or TOML file; ``-`` is stdin.

    Raises:
        InvalidRequestError: the file cannot be read, or is neither.
    """
    name = "stdin" if path == "-" else path
    data = _read(path)
    if path.endswith(".toml"):
        return _toml(data, name)
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if path == "-" and not data.lstrip().startswith((b"{", b"[{")):
            return _toml(data, name)
        raise InvalidRequestError(f"{name}: not valid JSON: {error}") from None


def _toml(data: bytes, name: str) -> Any:  # noqa: ANN401  see read_spec
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"{name}: not valid TOML: {error}") from None
