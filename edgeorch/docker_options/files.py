"""What stands in the files that options name: variables, labels, a seccomp profile."""

import json
from collections.abc import Callable
from typing import TypeAlias

from edgeorch.errors import DockerOptionError

ReadFile: TypeAlias = Callable[[str], bytes]
"""Gives the content of a file of the node; raises OSError, or an EdgeorchError to forbid it."""


def lines(option: str, path: str, read_file: ReadFile) -> list[str]:
    """``KEY=VALUE`` lines of an ``--env-file`` or ``--label-file``; ``#`` starts a comment line.

    A key without ``=`` would take its value from the environment of the caller, who is not here: it is left
    out, as docker does with a variable that is not set.

    Raises:
        DockerOptionError: the file cannot be read, or a line has no or a bad key.
    """
    text = _read(option, path, read_file)
    found: list[str] = []
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = raw.removesuffix("\r").lstrip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not key or " " in key or "\t" in key:
            raise DockerOptionError(f"--{option}: line {number} of {path} has no key or one with spaces")
        if equals:
            found.append(f"{key}={value}")
    return found


def seccomp(path: str, read_file: ReadFile) -> str:
    """A seccomp profile as one line of JSON.

    Raises:
        DockerOptionError: the file cannot be read or is not JSON.
    """
    text = _read("security-opt", path, read_file)
    try:
        return json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)
    except (ValueError, RecursionError):
        raise DockerOptionError(f"--security-opt: the seccomp profile {path} is not JSON") from None


def _read(option: str, path: str, read_file: ReadFile) -> str:
    try:
        return read_file(path).decode()
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise DockerOptionError(f"--{option}: {path}: {reason}") from error
    except ValueError:  # not UTF-8, or a path with a null byte
        raise DockerOptionError(f"--{option}: {path} is not a file of UTF-8 text") from None
