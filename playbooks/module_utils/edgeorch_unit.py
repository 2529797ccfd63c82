"""What systemd and the journal know of a unit."""

from __future__ import annotations

import time

from ansible.module_utils.edgeorch_cli import sentence

JOURNAL_S = 3
"""How long the journal may take to have the last words of a program."""


def show(module, names, properties):
    """Unit to property to value."""
    code, out, said = module.run_command(["systemctl", "show", *names, "--property", "Id," + properties])
    if code:
        module.fail_json(msg="this host has no running systemd: %s" % said.strip())
    found = {}
    for part in out.strip().split("\n\n"):
        unit = dict(line.split("=", 1) for line in part.splitlines() if "=" in line)
        found[unit["Id"]] = unit
    return found


def last_words(module, name, wait_s=JOURNAL_S):
    """Why a unit does not run: what its program said last, else what systemd says."""
    short, end = name.replace(".service", ""), time.monotonic() + wait_s
    while True:
        run = show(module, [name], "InvocationID")[name]["InvocationID"]
        which = ["_SYSTEMD_INVOCATION_ID=" + run, "+", "INVOCATION_ID=" + run]
        argv = ["journalctl", "--quiet", "--no-pager", "--output", "cat", "--lines", "60", *which]
        lines = module.run_command(argv)[1].splitlines()
        own = [number for number, line in enumerate(lines) if line.startswith(short + ": ")]
        if own or time.monotonic() > end:
            break
        time.sleep(0.2)
    said = lines[own[-1]].replace(short, "edgeorch", 1) if own else (lines or ["the journal is empty"])[-1]
    hint = lines[own[-1] + 1 : own[-1] + 2] if own else []
    return sentence("\n".join([said, *(line for line in hint if line.startswith(" "))]))
