"""``edgeorch keys`` and ``edgeorch token`` as a person types them."""

import json
import time

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edgeorch import cli, config
from edgeorch.config import Api, Config, Loaded, Node
from edgeorch.identity import load_identity
from edgeorch.identity.issue import new_key
from edgeorch.rest.auth import Tokens
from edgeorch.secret import Secret
from edgeorch.store import DropSecrets, PutSecrets
from edgeorch.store.sealing import Sealer
from edgeorch.store.sqlite import SqliteStore


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "etc" / "edgeorch.toml")

    def run(*words, code=0):
        got = cli.main(words)
        out, err = capsys.readouterr()
        assert got == code, err
        assert "Traceback" not in err
        return out, err

    return run


def test_from_a_new_fleet_to_a_node_and_its_end(run, tmp_path):
    _, err = run("keys", "init", "--fleet", "home")
    assert "Next, for each node: edgeorch keys issue" in err
    assert (tmp_path / ".edgeorch" / ".gitignore").read_text() == "*\n"
    out, err = run("keys", "issue", "kitchen", "--address", "192.0.2.7", "--address", "kitchen.lan")
    assert out == ""
    assert "scp -r .edgeorch/home/nodes/kitchen/. root@192.0.2.7:/etc/edgeorch/" in err
    folder = tmp_path / ".edgeorch" / "home" / "nodes" / "kitchen"
    settings = Config(node=Node(state_dir=str(tmp_path)))
    identity = load_identity(Loaded(settings, folder / "edgeorch.toml", {}), wall=time.time)
    assert (identity.name, identity.fleet) == ("kitchen", "home")

    out, _ = run("keys", "show", "--json")
    shown = json.loads(out)
    assert (shown["fleet"], shown["ca_fingerprint"]) == ("home", identity.ca_fingerprint)
    assert shown["nodes"][0]["addresses"] == ["192.0.2.7", "kitchen.lan"]
    assert shown["nodes"][0]["state"] == "valid"

    _, err = run("keys", "revoke", "kitchen")
    assert "scp .edgeorch/home/crl.pem" in err
    assert identity.take_crl((tmp_path / ".edgeorch/home/crl.pem").read_bytes())
    assert identity.revoked
    out, _ = run("keys", "show")
    assert f"kitchen\t{identity.node_id}\trevoked" in out


def test_a_name_in_use(run):
    run("keys", "init", "--fleet", "home")
    out, _ = run("keys", "issue", "kitchen", "--json")
    first = json.loads(out)
    _, err = run("keys", "issue", "kitchen", code=4)
    assert "belongs to node" in err
    assert "--replace" in err
    out, _ = run("keys", "issue", "kitchen", "--node-id", first["id"], "--json")
    assert json.loads(out)["id"] == first["id"]
    out, _ = run("keys", "issue", "kitchen", "--replace", "--json")
    assert json.loads(out)["id"] != first["id"]


def test_a_key_made_on_the_node(run, tmp_path):
    key = new_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "node.pub").write_bytes(key)
    run("keys", "init", "--fleet", "home")
    _, err = run("keys", "issue", "kitchen", "--public-key", "node.pub", code=2)
    assert "--public-key needs --node-id" in err
    out = tmp_path / "out"
    words = ("--public-key", "node.pub", "--node-id", "0123456789", "--out", str(out))
    _, err = run("keys", "issue", "kitchen", *words)
    assert "secret" not in err
    assert not (out / "pki" / "node.key").exists()
    assert (out / "node_id").read_text() == "0123456789\n"


def test_a_passphrase_and_a_folder_elsewhere(run, tmp_path):
    (tmp_path / "pass").write_text("secret\n")
    (tmp_path / "empty").write_text("\n")
    at = ("--dir", "ca")
    run("keys", "init", "--fleet", "home", *at, "--passphrase-file", "empty", code=78)
    run("keys", "init", "--fleet", "home", *at, "--passphrase-file", "pass")
    assert not (tmp_path / ".edgeorch").exists()
    _, err = run("keys", "issue", "a", *at, code=78)
    assert "--passphrase-file" in err
    run("keys", "issue", "a", *at, "--passphrase-file", "pass")
    assert (tmp_path / "ca/nodes/a/node_id").exists()


def test_which_fleet(run):
    _, err = run("keys", "show", code=2)
    assert "keys init" in err
    for fleet in ("home", "work"):
        run("keys", "init", "--fleet", fleet)
    _, err = run("keys", "show", code=2)
    assert "choose with --fleet: home, work" in err
    out, _ = run("keys", "show", "--fleet", "work", "--json")
    assert json.loads(out)["fleet"] == "work"
    _, err = run("keys", "init", "--fleet", "home", code=4)
    assert "already holds" in err


def test_wrong_words(run):
    run("keys", "init", "--fleet", "a b", code=4)
    run("keys", "init", "--fleet", "home")
    for words in (("self",), ("a", "--address", "1.2.3.4:5"), ("a", "--node-id", "x")):
        _, err = run("keys", "issue", *words, code=4)
        assert len(err.splitlines()) <= 2
    run("keys", "issue", "a", "--days", "0", code=2)
    run("keys", "revoke", "nobody", code=4)


def test_a_certificate_that_ends_soon_is_told(run):
    run("keys", "init", "--fleet", "home")
    run("keys", "issue", "a", "--days", "5")
    run("keys", "issue", "b")
    _, err = run("keys", "show")
    assert "a expires in 5 d: edgeorch keys issue a --node-id" in err
    assert "b expires" not in err


def test_a_new_key_of_the_store(run, tmp_path):
    settings = tmp_path / "edgeorch.toml"
    settings.write_text(f'[node]\nstate_dir = "{tmp_path}/state"\n')
    _, err = run("keys", "rotate-store", "--config", str(settings), code=78)
    assert "first start" in err

    async def node(*changes):
        store = SqliteStore(tmp_path / "state" / "edgeorch.db")
        async with trio.open_nursery() as nursery:
            await nursery.start(store.serve)
            await store.commit(changes)
            nursery.cancel_scope.cancel()

    (tmp_path / "state").mkdir()
    sealer = Sealer.load(tmp_path / "state")
    trio.run(node, PutSecrets(task_id="t", sealed=sealer.seal("t", {"a": Secret(b"b")})))
    _, err = run("keys", "rotate-store", "--config", str(settings))
    assert "2 keys; next: systemctl reload edgeorch" in err
    file = tmp_path / "state" / "store.key"
    assert file.stat().st_mode & 0o777 == 0o600
    _, err = run("keys", "rotate-store", "--drop-old", "--config", str(settings), code=78)
    assert "task t still needs an older key" in err
    trio.run(node, DropSecrets(task_id="t"))
    newest = file.read_text().splitlines()[0]
    _, err = run("keys", "rotate-store", "--drop-old", "--config", str(settings))
    assert file.read_text() == f"{newest}\n"


def test_tokens(run, tmp_path):
    run("keys", "init", "--fleet", "home")
    out, err = run("token", "create", "--role", "submit", "--name", "laptop", "--expires", "90d")
    text, path = out.strip(), tmp_path / ".edgeorch/home/tokens.toml"
    assert text.startswith("edgeorch_")
    assert text not in err
    assert text not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640
    tokens = Tokens(path, Api(), clock=time.monotonic)
    assert tokens.authenticate(f"Bearer {text}", "192.0.2.1", time.time()).token == "laptop"
    out, _ = run("token", "create", "--role", "admin", "--name", "ops", "--json")
    made = json.loads(out)
    assert (made["role"], made["expires"]) == ("admin", None)
    tokens.reload()
    assert tokens.authenticate(f"Bearer {made['token']}", "192.0.2.1", time.time()).role == "admin"

    _, err = run("token", "create", "--role", "read", "--name", "ops", code=4)
    assert "already has a token named 'ops'" in err
    out, _ = run("token", "list", "--json")
    assert [(t["name"], t["state"]) for t in json.loads(out)["tokens"]] == [
        ("laptop", "valid"),
        ("ops", "valid"),
    ]
    out, _ = run("token", "list")
    assert "ops\tadmin\tvalid" in out
    run("token", "revoke", "laptop")
    _, err = run("token", "revoke", "laptop", code=4)
    assert "no token named 'laptop'" in err
    out, _ = run("token", "list", "--json")
    assert [t["name"] for t in json.loads(out)["tokens"]] == ["ops"]


def test_where_tokens_are_kept(run, tmp_path):
    run("token", "create", "--role", "read", "--name", "a", "--file", "t.toml")
    assert (tmp_path / "t.toml").exists()
    run("keys", "init", "--fleet", "home")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "edgeorch.toml").write_text('[api]\ntokens = "my.toml"\n')
    run("token", "create", "--role", "read", "--name", "a")
    assert (tmp_path / "etc" / "my.toml").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--role", "root", "--name", "a"), 2),
        (("--role", "read", "--name", "a b"), 4),
        (("--role", "read", "--name", "anonymous"), 4),
        (("--role", "read", "--name", "a", "--expires", "soon"), 2),
        (("--role", "read", "--name", "a", "--expires", "0d"), 2),
        (("--role", "read", "--name", "a", "--expires", "999999999999y"), 2),
    ],
)
def test_tokens_that_are_refused(run, tmp_path, words, code):
    run("token", "create", *words, "--file", "t.toml", code=code)
    assert not (tmp_path / "t.toml").exists()


def test_a_broken_token_file_is_not_overwritten(run, tmp_path):
    (tmp_path / "t.toml").write_text("[[token")
    _, err = run("token", "create", "--role", "read", "--name", "a", "--file", "t.toml", code=78)
    assert "not valid TOML" in err
    assert (tmp_path / "t.toml").read_text() == "[[token"
