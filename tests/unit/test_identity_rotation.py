"""Changing the CA on the controller, and what nodes make of it at each step."""

import json
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from killed import killed_everywhere

from edgeorch.config import Config, Loaded, Node
from edgeorch.errors import ConfigError, ConflictError, IdentityError
from edgeorch.identity import Authority, load_identity

STEP = "from edgeorch.identity import Authority; Authority.open(folder).rotation().{}()"


@pytest.fixture
def ca(tmp_path):
    return Authority.create(tmp_path / "ca", "home")


def node(ca, folder, name):
    """A node that has just been given its files."""
    known = {entry.name: entry.id for entry in ca.index().nodes if entry.revoked_at is None}
    ca.issue(name, node_id=known.get(name)).write(folder / name)
    return load(folder, name)


def load(folder, name):
    config = Config(node=Node(state_dir=str(folder / name)))
    return load_identity(Loaded(config, folder / name / "edgeorch.toml", {}), wall=time.time)


def trust(ca, folder, *names):
    for name in names:
        (folder / name / "pki" / "ca.pem").write_bytes(ca.ca_pem)


def der(folder, name):
    text = (folder / name / "pki" / "node.pem").read_bytes()
    return x509.load_pem_x509_certificate(text).public_bytes(Encoding.DER)


def reason(call, *arguments):
    with pytest.raises(IdentityError) as caught:
        call(*arguments)
    return caught.value.reason


def test_all_three_steps(ca, tmp_path):
    for name in ("old", "off"):
        node(ca, tmp_path, name)
    (first,) = ca.fingerprints
    rotation = ca.rotation()
    assert (rotation.phase, rotation.begin(), rotation.phase, rotation.begin()) == ("", True, "begin", False)
    assert ca.fingerprint == first
    second = ca.fingerprints[1]
    with pytest.raises(ConflictError, match="does not sign yet"):
        rotation.finish()
    assert (rotation.reissue(), rotation.phase, rotation.reissue()) == (True, "reissue", False)
    assert ca.fingerprints == (second, first)
    with pytest.raises(ConflictError, match=r"the old CA stays: .* off, old"):
        rotation.finish()
    node(ca, tmp_path, "old")
    ca.revoke("off")
    rotation.finish()
    assert (rotation.phase, ca.fingerprints) == ("", (second,))
    assert not (ca.folder / "ca.next.key").exists()
    with pytest.raises(ConflictError):
        rotation.reissue()
    node(ca, tmp_path, "new")
    assert rotation.begin()


def test_nodes_of_every_step_know_each_other(ca, tmp_path):
    for name in ("a", "b", "gone"):
        node(ca, tmp_path, name)
    rotation = ca.rotation()
    rotation.begin()
    trust(ca, tmp_path, "a", "b")
    before = der(tmp_path, "b")
    gone = der(tmp_path, "gone")
    rotation.reissue()
    a = node(ca, tmp_path, "a")
    b = load(tmp_path, "b")
    assert a.verify_peer(before).name == "b"
    assert b.verify_peer(der(tmp_path, "a")).name == "a"
    # One list for both CAs: signed by the new one, it names nodes of the old one.
    ca.revoke("gone")
    for identity in (a, b):
        assert identity.take_crl(ca.crl_pem)
        assert reason(identity.verify_peer, gone) == "revoked"
    # A node that missed the first step takes nothing from a CA that it does not know.
    assert reason(load(tmp_path, "gone").take_crl, ca.crl_pem) == "wrong_ca"
    node(ca, tmp_path, "b")
    rotation.finish()
    trust(ca, tmp_path, "a", "b")
    for name in ("a", "b"):
        identity = load(tmp_path, name)
        assert identity.crl_number == ca.list_in_force().number
        assert reason(identity.verify_peer, gone) == "wrong_ca"
        assert reason(identity.verify_peer, before) == "wrong_ca"
    assert load(tmp_path, "a").verify_peer(der(tmp_path, "b")).name == "b"


@pytest.mark.parametrize("step", ["begin", "reissue", "finish"])
def test_killed_anywhere_the_same_step_completes_it(ca, tmp_path, step):
    node(ca, tmp_path, "a")
    rotation = ca.rotation()
    if step != "begin":
        rotation.begin()
    if step == "finish":
        rotation.reissue()
        node(ca, tmp_path, "a")
    copies = killed_everywhere(STEP.format(step), ca.folder, tmp_path / "killed")
    assert len(copies) == {"begin": 4, "reissue": 4, "finish": 5}[step]
    for copy in copies:
        # What is signed between the kill and the next try is from the CA that all nodes trust first.
        now = Authority.open(copy)
        certificate = x509.load_pem_x509_certificate(now.issue("between").certificate)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificates(now.ca_pem)[0])
        now.revoke("between")
        if step != "finish" or now.rotation().phase:
            getattr(now.rotation(), step)()
        assert now.rotation().phase == {"finish": ""}.get(step, step)
        assert len(now.fingerprints) == (1 if step == "finish" else 2)
        assert now.list_in_force().signed_by(x509.load_pem_x509_certificates(now.ca_pem)[0])
        assert now.list_in_force().number == now.index().crl_number


def test_a_wrong_passphrase_begins_nothing(tmp_path):
    Authority.create(tmp_path / "ca", "home", passphrase=b"secret")
    before = {path.name: path.read_bytes() for path in (tmp_path / "ca").iterdir()}
    for passphrase, said in ((None, "has a passphrase"), (b"guess", "the passphrase is wrong")):
        with pytest.raises(ConfigError, match=said):
            Authority.open(tmp_path / "ca", passphrase=passphrase).rotation().begin()
    assert {path.name: path.read_bytes() for path in (tmp_path / "ca").iterdir()} == before
    ca = Authority.open(tmp_path / "ca", passphrase=b"secret")
    ca.rotation().begin()
    assert b"ENCRYPTED" in (tmp_path / "ca" / "ca.next.key").read_bytes()
    ca.rotation().reissue()
    assert ca.issue("a").entry.ca == ca.fingerprint


def test_the_index_of_an_earlier_release_is_read(ca):
    ca.issue("a")
    index = json.loads((ca.folder / "index.json").read_bytes())
    del index["successor"]
    for entry in index["nodes"]:
        del entry["ca"]
    (ca.folder / "index.json").write_text(json.dumps(index))
    rotation = ca.rotation()
    rotation.begin()
    rotation.reissue()
    assert rotation.pending() == ["a"]
