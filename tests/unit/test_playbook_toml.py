import importlib.util
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeorch import config

PLUGIN = Path(__file__).parents[2] / "playbooks" / "filter_plugins" / "edgeorch_toml.py"
# What a control node has; the tests run where it is installed, the product does not need it.
errors = pytest.importorskip("ansible.errors")

spec = importlib.util.spec_from_file_location("edgeorch_toml", PLUGIN)
plugin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plugin)
to_toml = plugin.FilterModule().filters()["edgeorch_toml"]

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALAR = st.one_of(TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
VALUE = st.recursive(SCALAR, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=8)


@given(st.dictionaries(TEXT, st.dictionaries(TEXT, VALUE, min_size=1)))
def test_toml_reads_what_was_written(tree):
    assert tomllib.loads(to_toml(tree)) == tree


def test_what_is_left_out():
    assert to_toml({"a": {}, "b": {"x": None, "y": [1, True, "z"], "w": {"q": None}}}) == (
        '[b]\ny = [1, true, "z"]\nw = {}\n'
    )


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"log": "debug"}, "edgeorch_settings: log must be a section with keys, not 'debug'"),
        ({"log": {"level": object}}, "log.level: TOML has no word for"),
        (["log"], "edgeorch_settings must be sections"),
    ],
)
def test_what_is_no_setting_is_told(tree, said):
    with pytest.raises(errors.AnsibleFilterError, match=said):
        to_toml(tree)


def test_a_node_reads_it(tmp_path):
    path = tmp_path / "edgeorch.toml"
    labels = {"zone": "kitchen", "odd.name": 'a "quoted" \\ value\x7f'}
    path.write_text(to_toml({"node": {"name": "n1", "labels": labels}, "scoring": {"weight": 2.0}}))
    found = config.load(path, {}).config
    assert (found.node.name, found.node.labels, found.scoring.weight) == ("n1", labels, 2.0)
