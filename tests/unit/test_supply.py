"""What `make audit` makes of pip-audit's answers; the most dangerous one is that nobody knows anything."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("supply_audit", ROOT / "playbooks" / "locks" / "audit.py")
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)

FINE = {"name": "trio", "version": "1", "vulns": []}
BAD = {"name": "h11", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": []}]}
OPEN = {"name": "h2", "version": "2", "vulns": [{"id": "PYSEC-2", "fix_versions": [], "aliases": []}]}
UNKNOWN = {"name": "x", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ([FINE, FINE], 0, ["audited 2 packages, 0 vulnerable"]),
        ([FINE, UNKNOWN], 0, ["audited 1 packages, 0 vulnerable, 1 NOT AUDITED"]),
        (
            [UNKNOWN, UNKNOWN],
            0,
            ["NOT AUDITED: no service reached from here knows any of 2 packages"],
        ),
        (
            [BAD, OPEN],
            1,
            [
                "h11 2: PYSEC-1, fixed in 3",
                "h2 2: PYSEC-2, fixed in no release yet",
                "audited 2 packages, 2 vulnerable",
            ],
        ),
    ],
)
def test_what_pip_audit_found(found, code, said):
    answer = audit.answer_of(json.dumps({"dependencies": found}))
    assert audit.verdict(answer, len(found)) == (code, said)


def test_no_answer_is_said_and_is_no_failure():
    answer = audit.answer_of("Traceback\nrequests.exceptions.ConnectionError: no route")
    code, (line,) = audit.verdict(answer, 3)
    assert code == 0
    assert line.startswith("NOT AUDITED")


@pytest.mark.parametrize("said", ["", "[]", "{}", "usage: pip-audit", "ERROR:pip_audit._cli:duplicate"])
def test_another_failure_is_one(said):
    with pytest.raises(ValueError, match=r"."):
        audit.answer_of(said)


def test_every_pin_of_every_lock_is_asked_about_once():
    texts = [path.read_text() for path in audit.LOCKS.glob("*.txt")]
    for text in texts:
        assert len(audit.rounds([text])[0]) == len(re.findall(r"^[a-z0-9]", text, re.MULTILINE))
    made = audit.rounds(texts)
    assert len(made) > 1
    assert all(len({pin.partition("==")[0] for pin in one}) == len(one) for one in made)
    assert len({pin for one in made for pin in one}) == sum(map(len, made))
