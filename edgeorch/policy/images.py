"""Which images may run: patterns of names and digests, as ``policy.images`` and its files list them.

``alpine`` and ``ghcr.io/acme/*`` cover every tag and digest, ``alpine:3.*`` tags,
``ghcr.io/acme/*@sha256:*`` whatever is pinned by digest, ``sha256:HEX`` this digest under any name, and ``*``
alone everything. ``*`` stands for any characters within one part of a path, ``**`` also for slashes.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edgeorch.errors import ConfigError
from edgeorch.files import small_text
from edgeorch.policy.patterns import Glob

EVERYTHING = frozenset({"*", "**"})
_LARGEST = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9a-f]{32,}")
_BARE_ID = re.compile(r"[0-9a-f]+")
"""The Engine takes the first digits of an image's id for a name, where no image has that name."""


@dataclass(frozen=True)
class Reference:
    """A name of an image, or a pattern of one, in full.

    Attributes:
        name: with its registry: ``docker.io/library/alpine``.
        tag: empty where none is written; without a meaning where there is a digest, as for the Engine.
        digest: ``sha256:HEX``, or empty.
    """

    name: str
    tag: str
    digest: str

    @classmethod
    def of(cls, text: str) -> Self:
        """Fill in what docker fills in (github.com/distribution/reference): registry and ``library/``."""
        rest, _, digest = text.partition("@")
        path, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:
            path, tag = rest, ""
        registry, slash, remainder = path.partition("/")
        if not slash or not (any(char in registry for char in ".:") or registry == "localhost"):
            registry, remainder = "docker.io", path
        if registry in ("docker.io", "index.docker.io"):
            registry = "docker.io"
            remainder = remainder if "/" in remainder or remainder == "**" else f"library/{remainder}"
        return cls(f"{registry}/{remainder}", tag, digest)


@dataclass(frozen=True)
class ImageRule:
    """What one pattern allows."""

    name: Glob
    tag: Glob | None = None
    """None: any tag."""
    digest: Glob | None = None
    """None: also without a digest, or by any where ``tag`` is None, too."""

    def allows(self, asked: Reference) -> bool:
        """Whether the image is one of the entry's.

        A digest makes the Engine forget the tag, so an entry with a tag says nothing about a pinned image.
        """
        if not self.name.matches(asked.name):
            return False
        if asked.digest:
            return self.digest.matches(asked.digest) if self.digest else self.tag is None
        return not self.digest and (self.tag is None or self.tag.matches(asked.tag or "latest"))


def read_entry(entry: str) -> str | ImageRule:
    """An entry of ``policy.images``: a digest in its normal form, or a pattern.

    Raises:
        ValueError: what is wrong with it.
    """
    if not entry or any(char.isspace() or not char.isprintable() for char in entry):
        raise ValueError(f"{entry!r} is not a pattern for images")
    digits = entry.removeprefix("sha256:").lower()
    if _HEX.fullmatch(digits):
        return f"sha256:{digits}"
    if entry.startswith("sha256:"):
        raise ValueError(f"{entry!r} is not a digest: sha256: and 64 hexadecimal digits")
    asked = Reference.of(entry)
    if asked.digest:
        return ImageRule(Glob(asked.name), digest=Glob(asked.digest))
    return ImageRule(Glob(asked.name), tag=Glob(asked.tag) if asked.tag else None)


class Images:
    """``policy.images`` with its files read.

    Args:
        entries: patterns and digests.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        read = [read_entry(entry) for entry in entries]
        self._everything = not EVERYTHING.isdisjoint(entries)
        self._digests = {one for one in read if isinstance(one, str)}
        self._rules = [one for one in read if isinstance(one, ImageRule)]

    def refusal(self, image: str) -> str:
        """Why the image may not run, as the end of a sentence; empty where it may."""
        if self._everything:
            return ""
        if image.startswith("sha256:"):
            asked = Reference("", "", image)
        elif _BARE_ID.fullmatch(image):
            # An id would run any image that is here, whatever its name.
            return f"does not list {image}, which may be the id of any image: write its tag"
        else:
            asked = Reference.of(image)
        if asked.digest and not _DIGEST.fullmatch(asked.digest):
            return f"does not list {image}, whose digest cannot be read"
        if asked.digest in self._digests or any(rule.allows(asked) for rule in self._rules):
            return ""
        return f"does not list {image}"


def load_images(entries: Sequence[str]) -> tuple[Images, tuple[str, ...]]:
    """The entries, with the lines of files in place of the files that they name.

    A file has one entry a line; ``#`` starts a comment. The original's ``containerwhitelist.txt``, bare
    digests, is one.

    Returns:
        The images, and a sentence for each file or line that cannot be used: it allows nothing.

    Raises:
        ConfigError: an entry of the setting itself cannot be used.
    """
    found: list[str] = []
    warnings: list[str] = []
    for entry in entries:
        if entry.startswith("/"):
            found += _from_file(Path(entry), warnings)
            continue
        try:
            read_entry(entry)
        except ValueError as error:
            raise ConfigError(f"policy.images: {error}") from None
        found.append(entry)
    return Images(found), tuple(warnings)


def _from_file(path: Path, warnings: list[str]) -> Iterator[str]:
    try:
        lines = small_text(path, _LARGEST).splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        warnings.append(f"{path}: {reason}; no image of it is listed")
        return
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        try:
            if text:
                read_entry(text)
                yield text
        except ValueError as error:
            warnings.append(f"{path}: line {number}: {error}")
