"""What edgeorch's command line says, for a playbook."""

from __future__ import annotations

HOW_TO_OPEN = "set edgeorch_ca_passphrase to the one that the CA was made with (ansible-vault keeps it)"


def sentence(said):
    """Stderr, ``edgeorch: DETAIL`` with a hint on the next line, as one sentence."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if line.startswith(("edgeorch: ", "Error: "))]
    detail, *hints = lines[starts[-1] if starts else 0 :] or ["edgeorch failed without a word"]
    detail = detail.partition(": ")[2] if starts else detail
    if "passphrase" in detail:
        hints = [HOW_TO_OPEN]
    return ": ".join([detail.rstrip("."), *hints[:1]])
