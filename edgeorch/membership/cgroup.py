"""Limits of the container that the node itself may run in.

Only the root of the visible cgroup tree is read: inside a container that is the container, on a host it has
no limit files. The limits of the daemon's own unit are not the node's, because services run elsewhere.
"""

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that the container may use, None without a limit. cgroup v2, else v1."""
    return _number(root / "memory.max") or _number(root / "memory/memory.limit_in_bytes")


def memory_used(root: Path = ROOT) -> int:
    """Bytes in use that cannot be given back: the page cache on the inactive list is not counted."""
    for folder, usage, field in (
        (root, "memory.current", "inactive_file"),
        (root / "memory", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        used = _number(folder / usage)
        if used is not None:
            return max(used - _field(folder / "memory.stat", field), 0)
    return 0


def cpu_limit(root: Path = ROOT) -> float | None:
    """CPUs of the container's quota, None without one."""
    quota, _, period = _read(root / "cpu.max").partition(" ")
    if not period:
        quota = _read(root / "cpu/cpu.cfs_quota_us")
        period = _read(root / "cpu/cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _number(path: Path) -> int | None:
    text = _read(path)
    # v1 writes "no limit" as the largest multiple of the page size below 2^63.
    return int(text) if text.isdigit() and int(text) < 1 << 62 else None


def _field(path: Path, name: str) -> int:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
