"""Keys as PEM text."""

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from edgeorch.errors import ConfigError, InvalidRequestError
from edgeorch.identity.issue import PublicKey


def write_private(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """A private key in PKCS #8, encrypted where there is a passphrase."""
    protection: KeySerializationEncryption = NoEncryption()
    if passphrase:
        protection = BestAvailableEncryption(passphrase)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)


def read_private(text: bytes, passphrase: bytes | None, source: str) -> PrivateKeyTypes:
    """A private key. A passphrase that is not needed is ignored.

    Raises:
        ConfigError: it is not one, or the passphrase is missing or wrong.
    """
    encrypted = b"ENCRYPTED" in text
    if encrypted and not passphrase:
        raise ConfigError(f"{source}: the key has a passphrase", hint="the CA's goes into --passphrase-file")
    try:
        return load_pem_private_key(text, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if encrypted:
            hint = "give the one with which the CA was made (edgeorch_ca_passphrase in the playbooks)"
            raise ConfigError(f"{source}: the passphrase is wrong", hint=hint) from None
        raise ConfigError(f"{source}: not a PEM private key", hint="check that the file is whole") from None


def write_public(key: PublicKey) -> bytes:
    """A public key, as ``read_public`` takes it."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def read_public(text: bytes) -> PublicKey:
    """A public key that is strong enough, and that every TLS client knows.

    Raises:
        InvalidRequestError: it is not one.
    """
    try:
        key = load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm):
        hint = "make it with `openssl pkey -in node.key -pubout`"
        raise InvalidRequestError("the public key is not a PEM public key", hint=hint) from None
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in {"secp256r1", "secp384r1"}:
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return key
    hint = "use EC P-256 (or P-384, or RSA with 2048 bits and more)"
    raise InvalidRequestError("this kind of public key cannot be used", hint=hint)


def write_certificate(certificate: x509.Certificate) -> bytes:
    """One certificate."""
    return certificate.public_bytes(Encoding.PEM)


def read_certificates(text: bytes, source: str, hint: str = "") -> tuple[x509.Certificate, ...]:
    """One or more certificates.

    Raises:
        ConfigError: it is not that.
    """
    try:
        return tuple(x509.load_pem_x509_certificates(text))
    except ValueError:
        raise ConfigError(f"{source}: not a PEM certificate", hint=hint) from None
