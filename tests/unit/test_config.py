"""Settings: where they come from, and what is said about wrong ones."""

from pathlib import Path

import msgspec
import pytest

from edgeorch import config
from edgeorch.config import Config, load
from edgeorch.errors import ConfigError


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "edgeorch.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(autouse=True)
def _no_file_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "default" / "edgeorch.toml")


def test_without_file_and_environment_everything_is_a_default():
    loaded = load(env={})
    assert loaded.config == Config()
    assert loaded.path is None
    assert {origin for _, _, origin in loaded.rows()} == {"default"}
    assert loaded.folder == config.DEFAULT_PATH.parent


def test_the_default_file_is_read_where_it_exists():
    config.DEFAULT_PATH.parent.mkdir()
    config.DEFAULT_PATH.write_text("[api]\nport = 1234\n")
    loaded = load(env={})
    assert (loaded.config.api.port, loaded.path) == (1234, config.DEFAULT_PATH.resolve())


def test_the_environment_wins_over_the_file_which_wins_over_the_default(file):
    path = file('[api]\nport = 1000\nmax_body = 7\n[node.labels]\nzone = "attic"\n')
    loaded = load(path, {"EDGEORCH_API_PORT": "2000"})
    rows = {key: (value, origin) for key, value, origin in loaded.rows()}
    assert rows["api.port"] == (2000, "$EDGEORCH_API_PORT")
    assert rows["api.max_body"] == (7, str(path))
    assert rows["api.max_connections"] == (1000, "default")
    assert rows["node.labels"] == ({"zone": "attic"}, str(path))


def test_rows_hold_every_setting_once():
    keys = [key for key, _, _ in load(env={}).rows()]
    assert len(keys) == len(set(keys))
    expected = {
        f"{section.name}.{key.name}"
        for section in msgspec.structs.fields(Config)
        for key in msgspec.structs.fields(section.type)
    }
    assert set(keys) == expected


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("NODE_NAME", "kitchen", "kitchen"),
        ("NODE_NAME", "12", "12"),
        ("NODE_NAME", "", ""),
        ("NODE_STATE_DIR", "/x=[y]", "/x=[y]"),
        ("NODE_LABELS", '{zone = "attic", n = "1"}', {"zone": "attic", "n": "1"}),
        ("NODE_NETWORKS", "10.0.0.0/8, 192.168.0.0/16", ("10.0.0.0/8", "192.168.0.0/16")),
        ("DISCOVERY_SEEDS", "", ()),
        ("EXECUTOR_DRIVERS", "native", ("native",)),
        ("EXECUTOR_SLOTS", "3", 3),
        ("SCORING_WEIGHT", "2", 2.0),
        ("SCORING_WEIGHT", "0.5", 0.5),
        ("DISCOVERY_MDNS", "false", False),
        ("API_ANONYMOUS_ROLE", "read", "read"),
        ("LOG_LEVEL", '"debug"', "debug"),
        ("POLICY_NATIVE", "listed", "listed"),
        ("POLICY_NATIVE", '{submit = "off", admin = "any"}', {"submit": "off", "admin": "any"}),
        ("PKI_NODE_ID", "id", "id"),
    ],
)
def test_values_of_the_environment_have_the_setting_s_type(name, text, value):
    loaded = load(env={f"EDGEORCH_{name}": text})
    section, _, key = name.lower().partition("_")
    found = getattr(getattr(loaded.config, section), key)
    assert (found, type(found)) == (value, type(value))
    assert loaded.origins[f"{section}.{key}"] == f"$EDGEORCH_{name}"


def test_variables_that_are_no_settings_are_left_alone():
    others = ("EDGEORCH_NODE", "EDGEORCH_TOKEN", "EDGEORCH_URL", "EDGEORCH_TASK_ID", "API_PORT", "HOME")
    assert load(env=dict.fromkeys(others, "x")).config == Config()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[apy]", ["unknown section: 'apy'", "did you mean 'api'?"]),
        ("[zzzzzz]", ["unknown section: 'zzzzzz'", "known: node, api, "]),
        ("[api]\nprot = 1", ["unknown key in [api]: 'prot'", "did you mean 'port'?"]),
        ("[wire]\nzzzzzz = 1", ["unknown key in [wire]: 'zzzzzz'", "known: port, max_links"]),
        ("port = 1", ["unknown section: 'port'"]),
        ("api = 3", ["api must be a section, [api]"]),
        ("[[api]]\nport = 1", ["api must be a section, [api]"]),
        ("[api]\nport = 'x'", ["api.port: ", "Expected `int`, got `str`"]),
        ("[executor]\ngrace_s = inf", ["executor.grace_s: ", "Expected `float` <= "]),
        ("[executor]\ngrace_s = nan", ["executor.grace_s: ", "Expected `float` > 0"]),
        ("[policy]\nmax_timeout_s = inf", ["policy.max_timeout_s: ", "Expected `float` <= "]),
        ("[api]\nport = 65536", ["api.port: ", "<= 65535"]),
        ("[api]\nmax_body = 0", ["api.max_body: ", ">= 1"]),
        ("[api]\nanonymous_role = 'root'", ["api.anonymous_role: ", "'root'"]),
        ("[scoring]\nweight = nan", ["scoring.weight: ", "> 0"]),
        ("[node]\nlisten = ['a', 1]", ["node.listen: ", "got `int`"]),
        ("[node]\nlabels = {zone = 1}", ["node.labels: ", "got `int`"]),
        ("[executor]\ndrivers = ['docker']", ["executor.drivers: ", "'docker'"]),
        ("[policy]\nnative = 'never'", ["policy.native: ", "'never'"]),
        ("[policy.native]\nread = 'any'", ["policy.native: ", "'read'"]),
        ("[policy.native]\nadmin = 'x'", ["policy.native: ", "'x'"]),
        ("[policy]\nimage = ['a']", ["unknown key in [policy]: 'image'", "did you mean 'images'?"]),
        ("[policy]\nnamespaces = ['net']", ["policy.namespaces: ", "'net'"]),
        ("[policy]\nmax_cpus = -1", ["policy.max_cpus: "]),
        ("[policy.max_tasks]\nread = 1", ["policy.max_tasks: ", "'read'"]),
        ("[policy]\ndevices = ['gpus', 'video0']", ["policy.devices: ", "'video0' must start with /dev"]),
        ("[policy]\nhost_paths = ['/a', 'b']", ["policy.host_paths: ", "'b' must be absolute"]),
        ("[node]\nnetworks = ['10.0.0.1/8']", ["node.networks: ", "10.0.0.1/8 has host bits set"]),
        ("[membership]\nprobe_s = 3", ["membership.probe_s: ", "probe_s < suspect_s < dead_s"]),
        ("[lease]\nlease_s = 6", ["lease.lease_s: ", "less than half of lease.lease_s"]),
        ("[lease]\nrenew_s = 5", ["lease.renew_s: ", "less than half of lease.lease_s"]),
        ("[api]\ntls_cert = 'x'", ["api.tls_cert: ", "go together"]),
        ("[api]\ntls_key = 'x'", ["api.tls_key: ", "go together"]),
        ("[api\n", ["not valid TOML", "line 1"]),
        ("x = " + "[" * 10_000, ["not valid TOML"]),
    ],
)
def test_a_refusal_names_the_file_the_key_and_the_reason(file, text, said):
    path = file(text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert [part for part in said if part not in message] == [], message


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("EDGEORCH_API_PROT", "1", ["unknown key in [api]: 'prot'", "did you mean 'port'?"]),
        ("EDGEORCH_API_PORT", "many", ["api.port: ", "Expected `int`, got `str`"]),
        ("EDGEORCH_API_PORT", "", ["api.port: "]),
        ("EDGEORCH_DISCOVERY_MDNS", "yes", ["discovery.mdns: ", "Expected `bool`"]),
        ("EDGEORCH_NODE_LABELS", "{zone", ["'{zone' is not a TOML value"]),
        ("EDGEORCH_NODE_LABELS", "[" * 10_000, ["is not a TOML value"]),
        ("EDGEORCH_LEASE_LEASE_S", "1", ["lease.lease_s: ", "half"]),
        ("EDGEORCH_NODE_NETWORKS", "10.0.0.0/8,x", ["node.networks: ", "'x'"]),
    ],
)
def test_a_refusal_names_the_variable(file, name, text, said):
    with pytest.raises(ConfigError) as caught:
        load(file("[wire]\nport = 7\n"), {name: text})
    message = str(caught.value)
    assert message.startswith(f"${name}: ")
    assert [part for part in said if part not in message] == [], message


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: No such file or directory"):
        load(tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, {})
    (tmp_path / "latin.toml").write_bytes(b"[node]\nname = '\xe9'\n")
    with pytest.raises(ConfigError, match=r"latin\.toml: not valid TOML"):
        load(tmp_path / "latin.toml", {})


def test_a_default_file_that_cannot_be_read_is_no_missing_one():
    config.DEFAULT_PATH.parent.write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match="Not a directory"):
        load(env={})


def test_relative_paths_start_from_the_file(file, monkeypatch):
    path = file("")
    monkeypatch.chdir(path.parent)
    loaded = load(Path("edgeorch.toml"), {})
    monkeypatch.chdir("/")
    assert loaded.resolve("pki") == path.parent.resolve() / "pki"
    assert loaded.resolve("/elsewhere/pki") == Path("/elsewhere/pki")


def test_the_name_is_the_host_s_unless_given(monkeypatch):
    monkeypatch.setattr(config.socket, "gethostname", lambda: "kitchen.home.arpa")
    assert load(env={}).name == "kitchen"
    assert load(env={"EDGEORCH_NODE_NAME": "attic"}).name == "attic"
