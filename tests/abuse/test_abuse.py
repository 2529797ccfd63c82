"""The crowds of ``make abuse``, smaller and for seconds: what they find holds, however long it takes."""

import pytest
from abuse import CASES, run_case

SMALL = {"open_many": 2500, "slow_heads": 200, "slow_bodies": 200, "deaf_followers": 100, "full_speed": 32}
SOON = {"EDGEORCH_API_BODY_TIMEOUT_S": "1", "EDGEORCH_API_WRITE_TIMEOUT_S": "1"}
MEANT = {
    "open_many": {"connected"},
    "slow_heads": {"408"},
    "slow_bodies": {"408"},
    "deaf_followers": {"connected"},
    "full_speed": {"200", "202"},
}
"""What must have become of some of each crowd, so that a crowd that did nothing is no success."""


@pytest.mark.parametrize("case", CASES, ids=[case.says for case in CASES])
def test_a_crowd(case, tmp_path):
    found = run_case(case, tmp_path, seconds=3, count=SMALL[case.kind], env=SOON)
    assert found["held"], found
    assert MEANT[case.kind] <= set(found["crowd"]), found
    assert found["accepted"] > 0
