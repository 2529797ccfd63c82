"""Keys made on the node: what is asked for, what is put into force, and what a kill in between leaves."""

import os
import stat
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from killed import killed_everywhere

from edgeorch.config import Config, Loaded, Node
from edgeorch.errors import ConfigError, IdentityError
from edgeorch.identity import Authority, load_identity
from edgeorch.identity.folder import NodeFolder
from edgeorch.identity.signing import Request

INSTALL = "from edgeorch.identity.folder import NodeFolder; NodeFolder(folder).install(*{!r})"
ASK = "from edgeorch.identity.folder import NodeFolder; NodeFolder(folder).request(rotate=True)"


@pytest.fixture
def ca(tmp_path):
    return Authority.create(tmp_path / "ca", "home")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "etc"


def load(folder):
    config = Config(node=Node(state_dir=str(folder)))
    return load_identity(Loaded(config, folder / "edgeorch.toml", {}), wall=time.time)


def play(ca, folder, *, rotate=False):
    """One run of the playbook for a node; whether anything was changed there."""
    asked = NodeFolder(folder).request(rotate=rotate)
    signed = sign(ca, asked)
    installed = NodeFolder(folder).install(*(text.encode() for text in signed))
    return asked.changed or installed


def sign(ca, asked):
    request = Request(
        name="kitchen", node_id=asked.node_id, public_key=asked.public_key, certificate=asked.certificate
    )
    answer = ca.sign([request])
    outcome = answer.nodes["kitchen"]
    assert not outcome.error
    return outcome.certificate, answer.ca, answer.crl


def key_of(folder):
    return load(folder)._now.own.serial, (folder / "pki" / "node.key").read_bytes()


def test_a_bare_node_gets_keys_and_a_second_run_changes_nothing(ca, folder):
    assert play(ca, folder)
    identity = load(folder)
    assert (identity.name, identity.fleet) == ("kitchen", "home")
    assert (folder / "node_id").read_text() == f"{identity.node_id}\n"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder / "pki").iterdir()}
    assert modes == {"ca.pem": 0o644, "node.pem": 0o644, "crl.pem": 0o644, "node.key": 0o640}
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((folder / "pki").stat().st_mode) == 0o750
    assert not play(ca, folder)
    (folder / "pki" / "node.key").chmod(0o600)
    assert play(ca, folder)


def test_the_private_key_is_in_nothing_that_travels(ca, folder):
    asked = NodeFolder(folder).request()
    assert "PRIVATE" not in "".join((asked.public_key, asked.certificate, *sign(ca, asked)))


def test_a_rotation_changes_the_key_and_keeps_the_id(ca, folder):
    play(ca, folder)
    node_id, before = load(folder).node_id, key_of(folder)
    assert play(ca, folder, rotate=True)
    assert load(folder).node_id == node_id
    assert all(new != old for new, old in zip(key_of(folder), before, strict=True))
    assert not (folder / "pki" / "node.next.key").exists()
    assert not play(ca, folder)


def test_a_rotation_that_was_not_finished_goes_on_with_the_same_key(ca, folder):
    play(ca, folder)
    first = NodeFolder(folder).request(rotate=True)
    again = NodeFolder(folder).request(rotate=True)
    assert (again.public_key, first.changed, again.changed) == (first.public_key, True, False)
    assert NodeFolder(folder).request().public_key != first.public_key
    assert load(folder).name == "kitchen"


def test_killed_anywhere_while_asking_the_node_starts_and_the_next_run_goes_on(ca, folder, tmp_path):
    play(ca, folder)
    before = key_of(folder)
    copies = killed_everywhere(ASK, folder, tmp_path / "killed")
    assert len(copies) == 2
    for copy in copies:
        assert key_of(copy) == before
        assert play(ca, copy, rotate=True)
        assert load(copy).node_id == load(folder).node_id


def test_killed_anywhere_before_there_are_keys_the_next_run_makes_them(ca, folder, tmp_path):
    folder.mkdir()
    copies = killed_everywhere(ASK, folder, tmp_path / "killed")
    assert len(copies) == 3
    for copy in copies:
        asked, again = NodeFolder(copy).request(), NodeFolder(copy).request()
        assert (again.changed, again.public_key) == (False, asked.public_key)
        assert again.node_id == (copy / "node_id").read_text().strip()


@pytest.mark.parametrize("step", ["none", "begin", "reissue", "finish"])
def test_killed_anywhere_while_installing_the_node_starts_and_the_next_run_goes_on(
    ca, folder, tmp_path, step
):
    """The hardest cases: a new key and, at once, a step of a new CA."""
    play(ca, folder)
    rotation = ca.rotation()
    for earlier in ("begin", "reissue", "finish")[: ("none", "begin", "reissue", "finish").index(step)]:
        if earlier == "finish":
            play(ca, folder)
            play(ca, folder)
        getattr(rotation, earlier)()
    signed = [text.encode() for text in sign(ca, NodeFolder(folder).request(rotate=True))]
    copies = killed_everywhere(INSTALL.format(signed), folder, tmp_path / "killed")
    assert len(copies) == {"none": 3, "begin": 4, "reissue": 5, "finish": 4}[step]
    for copy in copies:
        identity = load(copy)
        assert identity.node_id == load(folder).node_id
        assert identity.verify_peer(der_of(copy)).node_id == identity.node_id
        NodeFolder(copy).install(*signed)
        assert not NodeFolder(copy).install(*signed)
        assert load(copy).ca_fingerprints == ca.fingerprints
        assert not (copy / "pki" / "node.next.key").exists()


def test_killed_anywhere_while_a_foreign_ca_takes_over_the_node_starts(ca, folder, tmp_path):
    """As after the loss of the controller: nothing of the old CA is in what is sent."""
    play(ca, folder)
    other = Authority.create(tmp_path / "other", "home")
    asked = NodeFolder(folder).request(rotate=True)
    issued = other.issue("kitchen", node_id=asked.node_id, public_key=asked.public_key.encode())
    signed = [issued.certificate, issued.ca, issued.crl]
    for copy in killed_everywhere(INSTALL.format(signed), folder, tmp_path / "killed"):
        assert load(copy).node_id == asked.node_id
        NodeFolder(copy).install(*signed)
        assert load(copy).ca_fingerprints == other.fingerprints


def der_of(folder):
    text = (folder / "pki" / "node.pem").read_bytes()
    return x509.load_pem_x509_certificate(text).public_bytes(Encoding.DER)


def test_parts_that_do_not_fit_change_nothing(ca, folder, tmp_path):
    play(ca, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = Authority.create(tmp_path / "other", "home")
    strange = other.issue("kitchen", node_id=load(folder).node_id)
    cellar = ca.issue("cellar")
    own = (folder / "pki" / "node.pem").read_bytes()
    for certificate, trusted, crl, said in (
        (strange.certificate, ca.ca_pem, b"", "is not from one of these CAs"),
        (cellar.certificate, ca.ca_pem, b"", "is for node"),
        (ca.issue("kitchen", node_id=load(folder).node_id).certificate, ca.ca_pem, b"", "another key"),
        (own, ca.ca_pem, other.crl_pem, "not signed by this fleet's CA"),
        (b"junk", ca.ca_pem, b"", "not a PEM certificate"),
    ):
        with pytest.raises((ConfigError, IdentityError), match=said):
            NodeFolder(folder).install(certificate, trusted, crl)
    ca.revoke("kitchen")
    with pytest.raises(ConfigError, match="revoked"):
        NodeFolder(folder).install(own, ca.ca_pem, ca.crl_pem)
    assert {path: path.read_bytes() for path in before} == before


def test_a_lost_node_id_is_taken_from_the_certificate(ca, folder):
    play(ca, folder)
    node_id = load(folder).node_id
    (folder / "node_id").unlink()
    assert NodeFolder(folder).request().node_id == node_id
    (folder / "node_id").write_text("../../etc\n")
    with pytest.raises(ConfigError, match="is not a node id"):
        NodeFolder(folder).request()


def test_a_damaged_certificate_or_an_older_list_is_replaced(ca, folder):
    play(ca, folder)
    (folder / "pki" / "node.pem").write_bytes(b"junk")
    (folder / "pki" / "ca.pem").write_bytes(b"junk")
    assert play(ca, folder)
    assert load(folder).crl_number == 1
    ca.issue("cellar")
    ca.revoke("cellar")
    newer = ca.crl_pem
    assert play(ca, folder)
    assert (folder / "pki" / "crl.pem").read_bytes() == newer
    assert not NodeFolder(folder).install((folder / "pki" / "node.pem").read_bytes(), ca.ca_pem, b""), (
        "a list that is there stays"
    )


@pytest.mark.root
def test_root_gives_the_files_to_the_services_group(ca, folder, monkeypatch):
    monkeypatch.setattr("edgeorch.identity.folder._group", lambda: 12345)
    play(ca, folder)
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (folder, *folder.rglob("*"))}
    assert owners == {(0, 12345)}
    os.chown(folder / "pki" / "node.key", 0, 0)
    assert play(ca, folder)
    assert not play(ca, folder)
