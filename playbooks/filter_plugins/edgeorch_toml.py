"""Write a tree of settings as TOML (toml.io, version 1.0)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from ansible.errors import AnsibleFilterError

BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(settings: Mapping[str, object]) -> str:
    """One ``[section]`` for each mapping in the tree; deeper ones become inline tables.

    Args:
        settings: section to key to value; a value that is None is left out.

    Raises:
        AnsibleFilterError: a section that is no mapping, or a value that TOML has no word for.
    """
    if not isinstance(settings, Mapping):
        raise AnsibleFilterError("edgeorch_settings must be sections with keys, as in edgeorch.toml")
    return "\n".join("".join(_section(name, part)) for name, part in settings.items() if part)


def _section(name: str, part: object) -> Iterator[str]:
    if not isinstance(part, Mapping):
        raise AnsibleFilterError(f"edgeorch_settings: {name} must be a section with keys, not {part!r}")
    yield f"[{_key(name)}]\n"
    for key, value in part.items():
        if value is not None:
            yield f"{_key(key)} = {_value(value, f'{name}.{key}')}\n"


def _key(name: object) -> str:
    text = str(name)
    return text if BARE.fullmatch(text) else _text(text)


def _value(value: object, where: str) -> str:
    # A bool is an int to Python, so it comes first.
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        pairs = (f"{_key(key)} = {_value(item, where)}" for key, item in value.items() if item is not None)
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, Sequence):
        return f"[{', '.join(_value(item, where) for item in value)}]"
    raise AnsibleFilterError(f"{where}: TOML has no word for {value!r}")


def _text(text: str) -> str:
    # JSON's escapes are TOML's too; only DEL has to be escaped in one and not in the other.
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007F")


class FilterModule:
    """What ansible looks for."""

    def filters(self) -> dict[str, object]:
        """Name to filter."""
        return {"edgeorch_toml": to_toml}
