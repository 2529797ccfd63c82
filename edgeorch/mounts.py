"""Which kind of file system a folder is on, by proc_pid_mountinfo(5)."""

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
MEMORY = {"tmpfs", "ramfs"}


def file_system(folder: Path, mounts: Path = MOUNTS) -> str:
    """The type of the file system that holds a folder; empty where unknown."""
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
        wanted = folder.resolve()
    except OSError:
        return ""
    found, kind = -1, ""
    for line in lines:
        left, _, right = line.partition(" - ")
        point = Path(_unescape(left.split(" ")[4]))
        # The last mount over a place is the one that is seen.
        if wanted.is_relative_to(point) and len(point.parts) >= found:
            found, kind = len(point.parts), right.partition(" ")[0]
    return kind


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)
