"""``--volume``, ``--mount`` and ``--tmpfs``."""

from collections.abc import Callable
from typing import Any

from edgeorch.docker_options import syntax

_VOLUME_KEYS = frozenset({"volume-nocopy", "volume-label", "volume-driver", "volume-opt"})
_BIND_KEYS = frozenset({"bind-propagation", "bind-nonrecursive"})
_TMPFS_KEYS = frozenset({"tmpfs-size", "tmpfs-mode"})
_FLAG_KEYS = frozenset({"readonly", "volume-nocopy", "bind-nonrecursive"})
_KEY_ALIASES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}


def volume(text: str) -> tuple[str, bool]:
    """``[SOURCE:]TARGET[:OPTIONS]``: the text, and whether it has a source.

    Without a source it is an anonymous volume. A source that starts with ``/`` is a folder of the host, any
    other the name of a volume.

    Raises:
        ValueError: an empty part, too many parts, or a source relative to a folder that nobody can name.
    """
    parts = text.split(":")
    if not text or len(parts) > 3 or "" in parts:
        raise ValueError("must be [SOURCE:]TARGET[:OPTIONS]")
    if len(parts) == 1:
        return text, False
    if parts[0][0] in ".~":
        raise ValueError("needs a host folder that starts with /")
    if len(parts[0]) == 1 and parts[0] != "/":
        raise ValueError("needs a volume name of at least two characters")
    return text, True


def tmpfs(text: str) -> tuple[str, str]:
    """``TARGET[:OPTIONS]``."""
    target, _, options = text.partition(":")
    return target, options


def mount(text: str) -> dict[str, Any]:
    """``type=…,source=…,target=…,…`` to a ``Mount`` of the Engine API.

    Raises:
        ValueError: an unknown key, a bad value, no target, or keys of another type of mount.
    """
    body: dict[str, Any] = {"Type": "volume"}
    seen: set[str] = set()
    for field in syntax.fields(text):
        written, equals, value = field.partition("=")
        key = _KEY_ALIASES.get(written.lower(), written.lower())
        if not equals:
            if key not in _FLAG_KEYS:
                raise ValueError(f"has {field!r} where key=value belongs")
            value = "true"
        if key not in _MOUNT_KEYS:
            raise ValueError(f"has the unknown key {written!r}")
        seen.add(key)
        _MOUNT_KEYS[key](body, value)
    if not body["Type"]:
        raise ValueError("needs a type")
    if not body.get("Target"):
        raise ValueError("needs a target")
    for kind, keys in (("volume", _VOLUME_KEYS), ("bind", _BIND_KEYS), ("tmpfs", _TMPFS_KEYS)):
        if seen & keys and body["Type"] != kind:
            raise ValueError(f"cannot mix {kind}-* keys with type {body['Type']!r}")
    source = body.get("Source", "")
    if source == "." or source.startswith("./"):
        raise ValueError("needs a source that starts with /")
    return body


def _text(name: str, *, lower: bool = False) -> Callable[[dict[str, Any], str], None]:
    def put(body: dict[str, Any], value: str) -> None:
        body[name] = value.lower() if lower else value

    return put


def _read_only(body: dict[str, Any], value: str) -> None:
    body["ReadOnly"] = syntax.boolean(value)


def _bind(name: str) -> Callable[[dict[str, Any], str], None]:
    def put(body: dict[str, Any], value: str) -> None:
        options = body.setdefault("BindOptions", {})
        options[name] = value.lower() if name == "Propagation" else syntax.boolean(value)

    return put


def _volume_options(body: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = body.setdefault("VolumeOptions", {"Labels": {}, "DriverConfig": {}})
    return options


def _no_copy(body: dict[str, Any], value: str) -> None:
    _volume_options(body)["NoCopy"] = syntax.boolean(value)


def _volume_label(body: dict[str, Any], value: str) -> None:
    key, text = syntax.pair(value)
    if key:
        _volume_options(body)["Labels"][key] = text


def _volume_driver(body: dict[str, Any], value: str) -> None:
    _volume_options(body)["DriverConfig"]["Name"] = value


def _volume_opt(body: dict[str, Any], value: str) -> None:
    options = _volume_options(body)["DriverConfig"].setdefault("Options", {})
    key, text = syntax.pair(value)
    if key:
        options[key] = text


def _tmpfs_size(body: dict[str, Any], value: str) -> None:
    body.setdefault("TmpfsOptions", {})["SizeBytes"] = syntax.size(value)


def _tmpfs_mode(body: dict[str, Any], value: str) -> None:
    if not value or not set(value) <= set("01234567") or len(value) > 10:
        raise ValueError(f"has the mode {value!r}, which is not octal")
    body.setdefault("TmpfsOptions", {})["Mode"] = int(value, 8)


_MOUNT_KEYS: dict[str, Callable[[dict[str, Any], str], None]] = {
    "type": _text("Type", lower=True),
    "source": _text("Source"),
    "target": _text("Target"),
    "readonly": _read_only,
    "consistency": _text("Consistency", lower=True),
    "bind-propagation": _bind("Propagation"),
    "bind-nonrecursive": _bind("NonRecursive"),
    "volume-nocopy": _no_copy,
    "volume-label": _volume_label,
    "volume-driver": _volume_driver,
    "volume-opt": _volume_opt,
    "tmpfs-size": _tmpfs_size,
    "tmpfs-mode": _tmpfs_mode,
}
