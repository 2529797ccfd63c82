"""How pip is run for a playbook, and what its failures mean in one sentence."""

from __future__ import annotations

import re

QUIET = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-color")
SECONDS = ("--retries", "1", "--timeout", "20")
"""An index that does not answer is told within a minute."""

_UNREACHABLE = re.compile(
    r"connection broken|NewConnectionError|Max retries exceeded|Name or service not known|name resolution"
    r"|timed out|Network is unreachable|Connection refused",
    re.IGNORECASE,
)
_MISSING = re.compile(r"No matching distribution found for (\S+)")
_REACH = "check the network, or name another index by edgeorch_pip_args"
_HASH = re.compile(r"Expected sha256 .*", re.IGNORECASE)


def complaint(said, where, machine):
    """What pip said on stderr as one sentence.

    Args:
        said: all of it.
        where: the folder that it wrote to.
        machine: for which Python and platform, such as ``Python 3.11 on linux-x86_64``.
    """
    if "No space left on device" in said:
        return f"no space left for {where}: free some, or mount a larger disk there"
    if "No module named pip" in said:
        return "this machine's Python has no pip: install it (Debian: apt-get install python3-pip)"
    missing = _MISSING.search(said)
    if missing and _UNREACHABLE.search(said):
        return f"the package index cannot be reached for {missing[1]}: {_REACH}"
    if missing:
        return (
            f"the package index has no wheel of {missing[1]} for {machine}: name an index that has it by "
            "edgeorch_pip_args, or use another Python by edgeorch_python"
        )
    if "DO NOT MATCH THE HASHES" in said or _HASH.search(said):
        return (
            "the package index gives a file that is not the one in the lock: use another by edgeorch_pip_args"
        )
    if _UNREACHABLE.search(said):
        return f"the package index cannot be reached: {_REACH}"
    errors = [line.partition("ERROR: ")[2] for line in said.splitlines() if "ERROR: " in line]
    last = (errors or said.strip().splitlines() or ["it failed without a word"])[-1]
    return f"pip failed: {last.strip().rstrip('.')}"
