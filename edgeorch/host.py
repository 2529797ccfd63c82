"""What the machine under the node is like: its clock, and the disk below a folder."""

import ctypes
import re
from pathlib import Path

STA_UNSYNC = 0x0040
"""Of adjtimex(2): nothing has set this clock, or not for a long time."""
MOUNTS = Path("/proc/self/mountinfo")
MEMORY = {"tmpfs", "ramfs"}
LAYERS = {"overlay", "aufs"}


class _Timex(ctypes.Structure):
    """The start of ``struct timex``, and room for the rest of it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def clock_synchronised() -> bool | None:
    """Whether a time service keeps this machine's clock; None where the kernel does not tell.

    The kernel knows it whichever service does it (timesyncd, chrony, ntpd), and of a container's host too.
    """
    clock = _Timex()
    try:
        if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(clock)) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return not clock.status & STA_UNSYNC


def why_volatile(folder: Path, mounts: Path = MOUNTS) -> str:
    """Why a folder's content may be gone after a restart of the machine; empty where it lasts.

    An overlay is what read-only root file systems and containers write into.
    """
    kind = _file_system(folder, mounts)
    if kind in MEMORY:
        return f"{folder} is in memory ({kind})"
    return f"{folder} is on an {kind}, not on a disk" if kind in LAYERS else ""


def _file_system(folder: Path, mounts: Path) -> str:
    """The type of the file system that holds a folder, by proc_pid_mountinfo(5); empty where unknown."""
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
