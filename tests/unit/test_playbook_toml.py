import importlib.util
import json
import os
import subprocess
import sys
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


WISHES = {
    "edgeorch_docker_images": ["ghcr.io/acme/*", "/etc/edgeorch/images"],
    "edgeorch_docker_devices": ["/dev/video*", "gpus"],
    "edgeorch_docker_binds": ["/srv/a"],
    "edgeorch_docker_capabilities": ["NET_ADMIN"],
    "edgeorch_docker_namespaces": ["network"],
    "edgeorch_docker_volumes": ["cache-*"],
    "edgeorch_docker_networks": ["web-*"],
    "edgeorch_labels": {"zone": 'it\'s "here"'},
    "edgeorch_weight": 2,
    "edgeorch_volatile": True,
    "edgeorch_settings": {"policy": {"max_tasks": {"submit": 100}}},
}


@pytest.mark.parametrize("wishes", [{}, WISHES], ids=["defaults", "wishes"])
def test_the_settings_of_a_guarded_host_as_ansible_makes_them(tmp_path, wishes):
    roles = PLUGIN.parents[1] / "roles"
    files = [str(roles / role) for role in ("edgeorch/defaults/main.yml", "config/vars/main.yml")]
    made = tmp_path / "edgeorch.toml"
    copy = {"ansible.builtin.copy": {"content": "{{ config_toml }}", "dest": str(made), "mode": "0600"}}
    play = {"hosts": "localhost", "gather_facts": False, "vars_files": files, "tasks": [copy]}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    python = {"ansible_python_interpreter": sys.executable}
    wanted = {"edgeorch_docker_mode": "guarded", **python, **wishes}
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "-c", "local"]
    done = subprocess.run(
        [*command, "-e", json.dumps(wanted), tmp_path / "play.yml"],
        env={**os.environ, "ANSIBLE_FILTER_PLUGINS": str(PLUGIN.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    found = config.load(made, {}).config
    expected = config.Policy()
    if wishes:
        expected = config.Policy(
            images=("ghcr.io/acme/*", "/etc/edgeorch/images"),
            devices=("/dev/video*", "gpus"),
            host_paths=("/srv/a",),
            capabilities=("NET_ADMIN",),
            namespaces=("network",),
            volumes=("cache-*",),
            networks=("web-*",),
            max_tasks={"submit": 100},
        )
    assert found.policy == expected
    assert (found.node.volatile, found.scoring.weight) == ((True, 2.0) if wishes else (False, 1.0))
    # What is at its default is not said: a release that does not know the word must read the file.
    assert ("images" in made.read_text()) is bool(wishes)
