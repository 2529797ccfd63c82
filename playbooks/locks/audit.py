"""Asks whether anything that the playbooks install has a known vulnerability; says so where nobody answers.

pip-audit counts a package that its index knows nothing of as fine; a mirror of PyPI without the JSON API
would make every audit pass. So each package is answered for here, or counted as not audited, in words.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LOCKS = Path(__file__).parent
PIN = re.compile(r"^([A-Za-z0-9._-]+==\S+?)(?:;.*)?(?: \\)?$", re.MULTILINE)
UNREACHED = re.compile(
    r"Connection|Timeout|timed out|Resolution|ProxyError|SSLError|ServiceError|HTTPError", re.IGNORECASE
)
ASK_S = 120


def rounds(texts):
    """Every pin in the locks, in rounds with one version of each name: pip-audit takes no more at a time."""
    made = []
    for pin in sorted({pin for text in texts for pin in PIN.findall(text)}):
        name, _, version = pin.partition("==")
        free = next((one for one in made if name not in one), None)
        if free is None:
            free = {}
            made.append(free)
        free[name] = version
    return [[f"{name}=={version}" for name, version in one.items()] for one in made]


def answer_of(said):
    """The packages in pip-audit's JSON; none where it reached nobody.

    Raises:
        ValueError: it failed for another reason.
    """
    try:
        return json.loads(said)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
    if UNREACHED.search(last):
        return []
    raise ValueError(last[:300])


def verdict(found, count):
    """(exit code, sentences) for what was found of so many packages."""
    answered = [one for one in found if "vulns" in one]
    if not answered:
        return 0, [f"NOT AUDITED: no service reached from here knows any of {count} packages"]
    bad = [one for one in answered if one["vulns"]]
    lines = [
        f"{one['name']} {one['version']}: {vulnerability['id']}, fixed in "
        f"{', '.join(vulnerability['fix_versions']) or 'no release yet'}"
        for one in bad
        for vulnerability in one["vulns"]
    ]
    left = count - len(answered)
    missed = f", {left} NOT AUDITED" if left else ""
    lines.append(f"audited {len(answered)} packages, {len(bad)} vulnerable{missed}")
    return (1 if bad else 0), lines


def ask(wanted):
    """What pip-audit prints about these."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(wanted))
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "-r", file.name, "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--timeout", "10"]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=False)
        except subprocess.TimeoutExpired:
            return f"timed out after {ASK_S} s"
    return ran.stdout or ran.stderr


def main():
    """Audit the locks."""
    wanted = rounds(path.read_text() for path in sorted(LOCKS.glob("*.txt")))
    found = []
    for one in wanted:
        try:
            found += answer_of(ask(one))
        except ValueError as error:
            print(f"audit: pip-audit failed: {error}")
            return 1
    code, lines = verdict(found, sum(map(len, wanted)))
    print("\n".join(f"audit: {line}" for line in lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
