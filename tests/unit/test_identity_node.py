"""A node's own files, and what it makes of other certificates at a time of its own."""

import time

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from edgeorch.config import Config, Loaded, Node
from edgeorch.errors import ConfigError, IdentityError
from edgeorch.identity import Authority, issue, load_identity, pem

DAY = 86_400.0


class Clock:
    def __init__(self):
        self.now = time.time()

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def home(tmp_path, clock):
    return Authority.create(tmp_path / "ca", "home", wall=clock)


@pytest.fixture
def kitchen(home, tmp_path):
    home.issue("kitchen", ["192.0.2.7"]).write(tmp_path / "kitchen")
    return tmp_path / "kitchen"


def load(folder, clock, *, kept=True, **sections):
    node = msgspec.structs.replace(sections.pop("node", Node()), state_dir=str(folder / "state"))
    (folder / "state").mkdir(exist_ok=True)
    loaded = Loaded(config=Config(node=node, **sections), path=folder / "edgeorch.toml", origins={})
    return load_identity(loaded, wall=clock, clock_kept=lambda: kept)


def der(issued):
    return x509.load_pem_x509_certificate(issued.certificate).public_bytes(Encoding.DER)


def reason(call, *arguments):
    with pytest.raises(IdentityError) as caught:
        call(*arguments)
    return caught.value.reason


def test_what_the_files_say(home, kitchen, clock):
    identity = load(kitchen, clock)
    assert identity.node_id == (kitchen / "node_id").read_text().strip()
    assert (identity.name, identity.fleet) == ("kitchen", "home")
    assert identity.ca_fingerprint == home.fingerprint
    assert identity.not_after == pytest.approx(clock.now + 397 * DAY, abs=1)
    assert identity.crl_number == 1
    assert identity.crl_pem == (kitchen / "pki" / "crl.pem").read_bytes()
    assert not identity.revoked
    assert identity.server_context() is identity.server_context()


def test_without_a_node_id_file_the_certificate_counts_and_nothing_is_written(kitchen, clock):
    node_id = (kitchen / "node_id").read_text().strip()
    (kitchen / "node_id").unlink()
    assert load(kitchen, clock).node_id == node_id
    assert not (kitchen / "node_id").exists()


def test_own_dates(kitchen, clock):
    clock.now += 398 * DAY
    with pytest.raises(IdentityError, match=r"node\.pem: the certificate of node .* expired at") as caught:
        load(kitchen, clock)
    assert (caught.value.reason, "deploy.yml" in caught.value.hint) == ("expired", True)


@pytest.mark.parametrize(
    ("shift", "kept", "said"), [(398, False, "expired at"), (-3, True, "clock is wrong")]
)
def test_a_wrong_clock_does_not_keep_the_node_down(kitchen, clock, shift, kept, said):
    clock.now += shift * DAY
    with capture_logs() as logs:
        identity = load(kitchen, clock, kept=kept)
    assert said in identity.problem
    assert logs[-1]["event"] == "peers may refuse this node"
    assert (logs[-1]["detail"], bool(logs[-1]["fix"])) == (identity.problem, True)
    clock.now -= shift * DAY
    assert not identity.problem


def test_an_expired_ca_is_told_as_such(home, kitchen, clock):
    clock.now += 3600 * DAY
    home.issue("cellar", ["192.0.2.8"]).write(kitchen.parent / "cellar")
    clock.now += 51 * DAY
    with pytest.raises(IdentityError, match=r"the CA that signed .* expired .*rotate_ca=true"):
        load(kitchen.parent / "cellar", clock)
    with pytest.raises(ConfigError, match=r"the fleet's CA expired .*rotate_ca=true"):
        home.issue("attic")


def test_own_certificate_of_another_ca(kitchen, clock, tmp_path):
    other = Authority.create(tmp_path / "ca2", "home", wall=clock)
    (kitchen / "pki" / "ca.pem").write_bytes(other.ca_pem)
    (kitchen / "pki" / "crl.pem").unlink()
    with pytest.raises(IdentityError, match=r"node\.pem is not from the CA in") as caught:
        load(kitchen, clock)
    assert caught.value.reason == "wrong_ca"


def test_own_certificate_revoked(home, kitchen, clock):
    home.revoke("kitchen")
    (kitchen / "pki" / "crl.pem").write_bytes((home.folder / "crl.pem").read_bytes())
    assert reason(load, kitchen, clock) == "revoked"


def test_the_cas_own_key_is_no_node(home, kitchen, clock):
    identity = load(kitchen, clock)
    ca = x509.load_pem_x509_certificate(home.ca_pem).public_bytes(Encoding.DER)
    assert reason(identity.verify_peer, ca) == "no_identity"
    assert reason(identity.verify_peer, b"junk") == "no_identity"
    assert reason(identity.verify_peer, b"") == "no_identity"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("ca.pem", None, "ca.pem: cannot read the fleet's CA certificate: No such file"),
        ("ca.pem", b"junk", "ca.pem: not a PEM certificate"),
        ("node.pem", None, "node.pem: cannot read the node's certificate"),
        ("node.pem", b"", "node.pem: not a PEM certificate"),
        ("node.key", None, "node.key: cannot read the node's key"),
        ("node.key", b"junk", "node.key: not a PEM private key"),
        ("node.key", pem.write_private(issue.new_key()), "node.key is not the key of .*node.pem"),
        ("node.key", pem.write_private(issue.new_key(), b"secret"), "node.key: the key has a passphrase"),
        ("../node_id", b"../../etc", "node_id: '../../etc' is not a node id"),
        ("../node_id", b"0123456789", "node.pem is for node .*, but .*node_id says 0123456789"),
    ],
)
def test_files_that_do_not_fit(kitchen, clock, name, content, said):
    path = kitchen / "pki" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load(kitchen, clock)


def test_a_key_that_cannot_be_read(kitchen, clock):
    (kitchen / "pki" / "node.key").unlink()
    (kitchen / "pki" / "node.key").mkdir()
    with pytest.raises(ConfigError, match="cannot read the node's key: Is a directory"):
        load(kitchen, clock)


def test_a_revocation_list_that_cannot_be_used(kitchen, clock):
    (kitchen / "pki" / "crl.pem").write_bytes(b"junk")
    with pytest.raises(IdentityError, match=r"crl\.pem: not a numbered revocation list"):
        load(kitchen, clock)


def test_a_configured_name_must_be_the_certificates(kitchen, clock):
    assert load(kitchen, clock, node=Node(name="kitchen")).name == "kitchen"
    with pytest.raises(ConfigError, match=r"node\.name is 'cellar', but .* is for 'kitchen'"):
        load(kitchen, clock, node=Node(name="cellar"))


def test_a_key_that_is_open_to_all_is_told(kitchen, clock):
    with capture_logs() as logs:
        load(kitchen, clock)
    assert not logs
    (kitchen / "pki" / "node.key").chmod(0o644)
    with capture_logs() as logs:
        load(kitchen, clock)
    assert "open to every user" in logs[0]["event"]


def test_peers_at_the_nodes_own_time(home, kitchen, clock, tmp_path):
    identity = load(kitchen, clock)
    cellar = home.issue("cellar", days=10)
    peer = identity.verify_peer(der(cellar))
    assert (peer.node_id, peer.name) == (cellar.entry.id, "cellar")
    clock.now += 11 * DAY
    assert reason(identity.verify_peer, der(cellar)) == "expired"
    assert reason(identity.verify_peer, der(cellar), clock.now) == "expired"
    assert reason(identity.verify_peer, der(cellar), clock.now - 2 * DAY) == "clock"
    assert reason(identity.verify_peer, der(cellar), float("nan")) == "expired"
    clock.now -= 14 * DAY
    assert reason(identity.verify_peer, der(cellar)) == "clock"
    foreign = Authority.create(tmp_path / "ca2", "home").issue("cellar")
    assert reason(identity.verify_peer, der(foreign)) == "wrong_ca"


def test_another_fleet_under_the_same_ca(home, kitchen, clock):
    identity = load(kitchen, clock)
    ca_key = pem.read_private((home.folder / "ca.key").read_bytes(), None, "ca.key")
    certificate = issue.node_certificate(
        x509.load_pem_x509_certificate(home.ca_pem),
        ca_key,
        issue.new_key().public_key(),
        fleet="factory",
        node_id="0123456789",
        name="press",
        addresses=(),
        wall=clock.now,
        days=1,
    )
    assert reason(identity.verify_peer, certificate.public_bytes(Encoding.DER)) == "wrong_fleet"


def test_several_cas_are_trusted_during_a_change(home, kitchen, clock, tmp_path):
    after = Authority.create(tmp_path / "ca2", "home", wall=clock)
    (kitchen / "pki" / "ca.pem").write_bytes(home.ca_pem + after.ca_pem)
    identity = load(kitchen, clock)
    assert identity.verify_peer(der(after.issue("cellar"))).name == "cellar"
    assert identity.verify_peer(der(home.issue("attic"))).name == "attic"
    assert identity.ca_fingerprint == home.fingerprint


def test_a_newer_list_is_taken_kept_and_an_older_one_is_not(home, kitchen, clock):
    identity = load(kitchen, clock)
    first = (home.folder / "crl.pem").read_bytes()
    cellar = home.issue("cellar")
    home.revoke("cellar")
    second = (home.folder / "crl.pem").read_bytes()
    assert not identity.take_crl(first)
    assert identity.take_crl(second)
    assert not identity.take_crl(second)
    assert not identity.take_crl(first)
    assert (identity.crl_number, identity.crl_pem) == (2, second)
    assert (kitchen / "pki" / "crl.pem").read_bytes() == first
    assert (kitchen / "state" / "crl.pem").read_bytes() == second
    assert reason(identity.verify_peer, der(cellar)) == "revoked"
    assert load(kitchen, clock).crl_number == 2


def test_a_kept_list_that_is_stale_foreign_or_broken_is_not_used(home, kitchen, clock, tmp_path):
    other = Authority.create(tmp_path / "ca2", "home", wall=clock)
    for name in ("x", "y"):
        other.issue(name)
        other.revoke(name)
    load(kitchen, clock)
    for kept, said in ((other.crl_pem, True), (b"junk", True), (b"", False), (home.crl_pem, False)):
        (kitchen / "state" / "crl.pem").write_bytes(kept)
        with capture_logs() as logs:
            assert load(kitchen, clock).crl_number == 1
        assert [line["event"] for line in logs] == ["a kept revocation list is not used"] * said
    home.issue("cellar")
    home.revoke("cellar")
    stale = (kitchen / "pki" / "crl.pem").read_bytes()
    (kitchen / "pki" / "crl.pem").write_bytes(home.crl_pem)
    (kitchen / "state" / "crl.pem").write_bytes(stale)
    assert load(kitchen, clock).crl_number == 2


def test_a_list_of_a_dropped_ca_does_not_outlive_it(home, kitchen, clock, monkeypatch):
    identity = load(kitchen, clock)
    home.issue("cellar")
    home.revoke("cellar")
    assert identity.take_crl(home.crl_pem)
    after = Authority.create(kitchen.parent / "ca2", "home", wall=clock)
    after.issue("kitchen", ["192.0.2.7"], node_id=identity.node_id).write(kitchen)
    identity.reload()
    assert (identity.ca_fingerprints, identity.crl_number) == (after.fingerprints, 1)


def test_a_foreign_or_broken_list_changes_nothing(home, kitchen, clock, tmp_path):
    identity = load(kitchen, clock)
    other = Authority.create(tmp_path / "ca2", "home", wall=clock)
    other.issue("x")
    other.revoke("x")
    assert reason(identity.take_crl, (other.folder / "crl.pem").read_bytes()) == "wrong_ca"
    assert reason(identity.take_crl, b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n") == "invalid"
    assert identity.crl_number == 1


def test_a_list_that_cannot_be_written_is_in_force_and_survives_a_reload(home, kitchen, clock, monkeypatch):
    identity = load(kitchen, clock)
    home.issue("cellar")
    home.revoke("cellar")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("edgeorch.files._write_new", refuse)
    with capture_logs() as logs:
        assert identity.take_crl((home.folder / "crl.pem").read_bytes())
    assert "not written" in logs[-1]["event"]
    identity.reload()
    assert identity.crl_number == 2


def test_an_expired_list_warns_once_and_stays_in_force(home, kitchen, clock):
    identity = load(kitchen, clock)
    cellar = home.issue("cellar", days=1000)
    home.revoke("cellar")
    identity.take_crl((home.folder / "crl.pem").read_bytes())
    clock.now += 396 * DAY
    attic = der(home.issue("attic"))
    clock.now += 3 * DAY
    with capture_logs() as logs:
        assert reason(identity.verify_peer, der(cellar)) == "revoked"
        assert identity.verify_peer(attic).name == "attic"
    assert [entry["event"] for entry in logs] == ["the revocation list is out of date and stays in force"]


def test_a_bad_reload_keeps_the_old_files_in_use(home, kitchen, clock):
    identity = load(kitchen, clock)
    before = identity.server_context()
    (kitchen / "pki" / "node.key").write_bytes(b"junk")
    with pytest.raises(ConfigError):
        identity.reload()
    assert identity.server_context() is before
    (kitchen / "node_id").unlink()
    home.issue("cellar").write(kitchen)
    assert reason(identity.reload) == "other_node"
    assert identity.name == "kitchen"


def test_learning_of_ones_own_revocation(home, kitchen, clock):
    identity = load(kitchen, clock)
    home.revoke("kitchen")
    with capture_logs() as logs:
        identity.take_crl((home.folder / "crl.pem").read_bytes())
    assert identity.revoked
    assert any("own certificate is revoked" in entry["event"] for entry in logs)
