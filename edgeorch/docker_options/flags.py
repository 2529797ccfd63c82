"""Command line words to options, by the rules of the ``docker`` command.

Those are the rules of its flag library (github.com/spf13/pflag): ``--name=value``, ``--name value``,
``-nvalue``, ``-n value``, ``-n=value``, combined one-letter flags, ``--`` ends the options, and the first
word that is no option is the image.
"""

import difflib
from collections.abc import Iterator, Sequence

from edgeorch.docker_options.table import (
    BY_NAME,
    BY_SHORT,
    UNSUPPORTED,
    UNSUPPORTED_SHORT,
    Option,
)
from edgeorch.errors import DockerOptionError


def split(argv: Sequence[str]) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Take ``docker run [OPTIONS] IMAGE [ARGS]`` apart.

    Args:
        argv: ``["docker", "run", …]`` or ``["docker", "container", "run", …]``.

    Returns:
        Option words, image, arguments for the image.

    Raises:
        DockerOptionError: not a ``docker run`` line, no image, or an option that is unknown, unsupported or
            lacks its value.
    """
    words = list(argv)
    start = 3 if words[1:2] == ["container"] else 2
    if not words or words[0].rpartition("/")[2] != "docker" or words[start - 1 : start] != ["run"]:
        shown = " ".join(words[:3])
        raise DockerOptionError(
            f"a container command starts with docker run, not with {shown[:80]!r}",
            hint='write ["docker", "run", OPTIONS…, IMAGE, ARGS…]',
        )
    scan = Scan(words[start:])
    for _ in scan:
        pass
    rest = words[start + scan.position :]
    if not rest or not rest[0]:
        raise DockerOptionError("docker run needs an image", hint="put it after the options")
    options = words[start : start + scan.position]
    if scan.ended:
        options.pop()
    return tuple(options), rest[0], tuple(rest[1:])


class Scan:
    """Iterates over the options in ``words`` as (option, value as written); a bare flag gives ``true``.

    Stops at the first word that is no option, which is then ``words[position]``; ``ended`` says whether a
    ``--`` stands before it.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self.position = 0
        self.ended = False

    def __iter__(self) -> Iterator[tuple[Option, str]]:
        while self.position < len(self._words):
            word = self._words[self.position]
            if len(word) < 2 or word[0] != "-":
                return
            self.position += 1
            if word == "--":
                self.ended = True
                return
            if word.startswith("--"):
                yield self._long(word)
            else:
                yield from self._short(word)

    def _long(self, word: str) -> tuple[Option, str]:
        name, equals, value = word[2:].partition("=")
        if not name or name.startswith("-"):
            raise DockerOptionError(f"{word[:80]!r} is not an option of docker run")
        option = BY_NAME.get(name)
        if option is None:
            raise _refusal(f"--{name}", name)
        if equals:
            return option, value
        if option.kind == "flag":
            return option, "true"
        return option, self._next(f"--{name}")

    def _short(self, word: str) -> Iterator[tuple[Option, str]]:
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            option = BY_SHORT.get(letter)
            if option is None:
                raise _refusal(f"-{letter}", UNSUPPORTED_SHORT.get(letter, ""))
            if len(letters) > 1 and letters[0] == "=":
                yield option, letters[1:]
                return
            if option.kind == "flag":
                yield option, "true"
                continue
            yield option, letters or self._next(f"-{letter}")
            return

    def _next(self, shown: str) -> str:
        if self.position == len(self._words):
            raise DockerOptionError(f"{shown}: a value is missing")
        value = self._words[self.position]
        self.position += 1
        return value


def _refusal(shown: str, name: str) -> DockerOptionError:
    if name in UNSUPPORTED:
        full = shown if shown == f"--{name}" else f"{shown} (--{name})"
        return DockerOptionError(f"{full} is not supported", hint=UNSUPPORTED[name])
    near = difflib.get_close_matches(name[:64], BY_NAME, n=1)
    hint = f"did you mean --{near[0]}?" if near else "see the list of supported options"
    return DockerOptionError(f"{shown[:80]} is not a known option of docker run", hint=hint)
