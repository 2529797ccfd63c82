"""The fleet CA: what it issues, what it refuses, and what its folder holds."""

import threading
import time
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgeorch.errors import ConfigError, ConflictError, InvalidRequestError, NotFoundError, StorageError
from edgeorch.identity import Authority, node_uri
from edgeorch.identity.issue import new_key

DAY = 86_400.0


@pytest.fixture
def home(tmp_path):
    return Authority.create(tmp_path / "ca", "home")


def mode(path):
    return path.stat().st_mode & 0o777


def public_pem(key):
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def crl(authority):
    return x509.load_pem_x509_crl((authority.folder / "crl.pem").read_bytes())


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind)


def test_the_ca(home):
    ca = x509.load_pem_x509_certificate(home.ca_pem)
    basic, usage = extension(ca, x509.BasicConstraints), extension(ca, x509.KeyUsage)
    assert (basic.value.ca, basic.value.path_length, basic.critical) == (True, 0, True)
    assert usage.value.key_cert_sign
    assert usage.value.crl_sign
    assert not usage.value.digital_signature
    assert isinstance(ca.public_key().curve, ec.SECP256R1)
    assert ca.not_valid_before_utc.timestamp() == pytest.approx(time.time() - 2 * DAY, abs=60)
    assert mode(home.folder / "ca.key") == 0o600
    assert mode(home.folder) == 0o700
    assert not list(crl(home))


def test_a_node_certificate(home):
    issued = home.issue("kitchen", ["192.0.2.7", "kitchen.lan", "2001:db8::7", "kitchen"])
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    names = extension(certificate, x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [node_uri("home", issued.entry.id)]
    assert names.get_values_for_type(x509.DNSName) == ["kitchen", "kitchen.local", "kitchen.lan"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("192.0.2.7"), ip_address("2001:db8::7")]
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "kitchen"
    assert set(extension(certificate, x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert certificate.not_valid_before_utc.timestamp() == pytest.approx(time.time() - 2 * DAY, abs=60)
    assert certificate.not_valid_after_utc.timestamp() == pytest.approx(time.time() + 397 * DAY, abs=60)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(home.ca_pem))
    assert (
        certificate.serial_number != x509.load_pem_x509_certificate(home.issue("b").certificate).serial_number
    )


def test_the_folder_of_a_node(home, tmp_path):
    home.issue("kitchen").write(tmp_path / "etc")
    pki = tmp_path / "etc" / "pki"
    assert {path.name for path in pki.iterdir()} == {"ca.pem", "node.pem", "node.key", "crl.pem"}
    assert mode(pki / "node.key") == 0o600
    assert (tmp_path / "etc" / "node_id").read_text().strip() == home.index().nodes[0].id


def test_a_key_made_on_the_node_never_leaves_it(home, tmp_path):
    key = new_key()
    issued = home.issue("kitchen", node_id="0123456789", public_key=public_pem(key))
    assert issued.key is None
    assert x509.load_pem_x509_certificate(issued.certificate).public_key() == key.public_key()
    issued.write(tmp_path / "etc")
    assert not (tmp_path / "etc" / "pki" / "node.key").exists()


@pytest.mark.parametrize(
    "public",
    [
        b"",
        b"junk",
        public_pem(ec.generate_private_key(ec.SECP256K1())),
        public_pem(rsa.generate_private_key(65537, 1024)),
        public_pem(ed25519.Ed25519PrivateKey.generate()),
    ],
)
def test_public_keys_that_are_refused(home, public):
    with pytest.raises(InvalidRequestError, match="public key"):
        home.issue("kitchen", node_id="0123456789", public_key=public)
    assert home.index().nodes == ()


def test_a_name_in_use_is_refused_unless_replaced(home):
    old = home.issue("kitchen").entry
    for name in ("kitchen", "Kitchen"):
        with pytest.raises(ConflictError, match=f"belongs to node {old.id}"):
            home.issue(name)
    new = home.issue("kitchen", replace=True).entry
    states = {entry.id: entry.revoked_at for entry in home.index().nodes}
    assert states[old.id] is not None
    assert states[new.id] is None
    assert [f"{entry.serial_number:x}" for entry in crl(home)] == list(old.serials)


def test_a_renewal_keeps_id_and_name_and_revokes_nothing(home):
    first = home.issue("kitchen", ["192.0.2.7"]).entry
    second = home.issue("kitchen", node_id=first.id).entry
    assert len(home.index().nodes) == 1
    assert second.serials == (*first.serials, second.serials[1])
    assert not list(crl(home))
    home.revoke("kitchen")
    assert {f"{entry.serial_number:x}" for entry in crl(home)} == set(second.serials)


def test_ids_that_cannot_be_used(home):
    entry = home.issue("kitchen").entry
    with pytest.raises(ConflictError, match="is named 'kitchen'"):
        home.issue("cellar", node_id=entry.id)
    home.revoke(entry.id)
    with pytest.raises(ConflictError, match="is revoked"):
        home.issue("kitchen", node_id=entry.id)
    assert home.issue("kitchen").entry.id != entry.id


def test_revoking_again_changes_nothing_and_numbers_grow(home):
    numbers = [crl(home).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number]
    for name in ("a", "b"):
        home.issue(name)
    for name in ("a", "b"):
        home.revoke(name)
        numbers.append(crl(home).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number)
    assert numbers == [1, 2, 3]
    before = (home.folder / "crl.pem").read_bytes()
    gone = next(entry for entry in home.index().nodes if entry.name == "b")
    assert home.revoke(gone.id) == gone
    assert (home.folder / "crl.pem").read_bytes() == before
    with pytest.raises(NotFoundError, match="no node 'c' in fleet home"):
        home.revoke("c")


def test_a_list_that_is_behind_the_index_is_made_again(home):
    entry = home.issue("a").entry
    old = (home.folder / "crl.pem").read_bytes()
    home.revoke("a")
    (home.folder / "crl.pem").write_bytes(old)  # As after a crash between the two files.
    issued = home.issue("b")
    assert [f"{found.serial_number:x}" for found in x509.load_pem_x509_crl(issued.crl)] == list(entry.serials)


@pytest.mark.parametrize("name", ["", "self", "Self", "a b", "-a", "a-", "a/b", "ä", "a" * 64, "a\n", "../x"])
def test_names_that_are_refused(home, name):
    with pytest.raises(InvalidRequestError, match="cannot name a node"):
        home.issue(name)


@pytest.mark.parametrize(
    "address", ["", "192.0.2.300", "192.0.2.1:56001", "fe80::1%eth0", "a b", "http://x", "ä.lan"]
)
def test_addresses_that_are_refused(home, address):
    with pytest.raises(InvalidRequestError, match="is not an address"):
        home.issue("kitchen", [address])


def test_other_wishes_that_are_refused(home, tmp_path):
    with pytest.raises(InvalidRequestError, match="not a node id"):
        home.issue("kitchen", node_id="short")
    with pytest.raises(InvalidRequestError, match="days is not possible"):
        home.issue("kitchen", days=0)
    with pytest.raises(InvalidRequestError, match="cannot name a fleet"):
        Authority.create(tmp_path / "x", "two words")
    with pytest.raises(ConflictError, match="already holds a fleet's CA"):
        Authority.create(home.folder, "home")


def test_a_passphrase(tmp_path):
    folder = tmp_path / "ca"
    Authority.create(folder, "home", passphrase=b"secret").issue("a")
    assert b"ENCRYPTED" in (folder / "ca.key").read_bytes()
    assert Authority.open(folder).index().fleet == "home"
    with pytest.raises(ConfigError, match="has a passphrase"):
        Authority.open(folder).issue("b")
    with pytest.raises(ConfigError, match="the passphrase is wrong"):
        Authority.open(folder, passphrase=b"guess").issue("b")
    assert Authority.open(folder, passphrase=b"secret").issue("b").entry.name == "b"


def test_a_folder_that_cannot_be_used(tmp_path, home):
    with pytest.raises(ConfigError, match="cannot read the CA certificate"):
        Authority.open(tmp_path / "nothing")
    (home.folder / "index.json").write_text("{")
    with pytest.raises(ConfigError, match=r"index\.json"):
        Authority.open(home.folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the folder"):
        Authority.create(tmp_path / "file" / "ca", "home")


def test_a_key_of_another_ca(home, tmp_path):
    other = Authority.create(tmp_path / "other", "home")
    (home.folder / "ca.key").write_bytes((other.folder / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match=r"is not the key of ca\.pem"):
        home.issue("a")


def test_several_at_a_time_lose_nothing(home):
    threads = [
        threading.Thread(target=Authority.open(home.folder).issue, args=(f"n{number}",))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.name for entry in home.index().nodes} == {f"n{number}" for number in range(8)}
