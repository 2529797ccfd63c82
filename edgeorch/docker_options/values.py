"""The options of one service, converted and checked one by one."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from edgeorch.docker_options import syntax
from edgeorch.docker_options.flags import Scan
from edgeorch.errors import DockerOptionError

T = TypeVar("T")


class Values:
    """What was written for each option. Of a single value the last one counts, but all must be valid.

    Raises:
        DockerOptionError: an unknown or unsupported option, or a word that is none.
    """

    def __init__(self, options: Sequence[str]) -> None:
        self._written: dict[str, list[str]] = {}
        scan = Scan(options)
        for option, value in scan:
            self._written.setdefault(option.name, []).append(value)
        if scan.ended or scan.position < len(options):
            word = "--" if scan.ended else options[scan.position]
            raise DockerOptionError(f"{word[:80]!r} is not an option", hint="arguments go after the image")

    def __contains__(self, name: str) -> bool:
        return name in self._written

    def all(self, name: str) -> list[str]:
        """The texts of a list option."""
        return list(self._written.get(name, ()))

    def each(self, name: str, convert: Callable[[str], T]) -> list[T]:
        """Every value, converted; a ValueError becomes a DockerOptionError that names the option."""
        return [self._convert(name, text, convert) for text in self._written.get(name, ())]

    def last(self, name: str, convert: Callable[[str], T], default: T) -> T:
        """The value that counts."""
        values = self.each(name, convert)
        return values[-1] if values else default

    def text(self, name: str, default: str = "") -> str:
        """A text as written."""
        return self._written.get(name, [default])[-1]

    def flag(self, name: str) -> bool:
        """Whether a flag is on."""
        return self.last(name, syntax.boolean, default=False)

    def integer(self, name: str, default: int = 0) -> int:
        """A 64-bit integer."""
        return self.last(name, syntax.integer, default)

    def size(self, name: str) -> int:
        """Bytes; 0 where not given."""
        return self.last(name, syntax.size, 0)

    @staticmethod
    def _convert(name: str, text: str, convert: Callable[[str], T]) -> T:
        try:
            return convert(text)
        except ValueError as error:
            shown = text if len(text) <= 80 else f"{text[:77]}..."
            raise DockerOptionError(f"--{name} {shown!r} {error}") from None
