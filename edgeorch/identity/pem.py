"""Keys as PEM text."""

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
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
        wrong = "the passphrase is wrong" if encrypted else "not a PEM private key"
        raise ConfigError(f"{source}: {wrong}", hint="check that the file is whole") from None


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
