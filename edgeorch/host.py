"""What the machine under the node is like: its clock, and the disk below a folder."""

import ctypes
from pathlib import Path

from edgeorch.mounts import MEMORY, MOUNTS, file_system

STA_UNSYNC = 0x0040
"""Of adjtimex(2): nothing has set this clock, or not for a long time."""
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
    kind = file_system(folder, mounts)
    if kind in MEMORY:
        return f"{folder} is in memory ({kind})"
    return f"{folder} is on an {kind}, not on a disk" if kind in LAYERS else ""
