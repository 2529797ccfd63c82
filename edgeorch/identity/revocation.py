"""The fleet's revocation list: who is no longer a node, whatever the dates in its certificate say.

OpenSSL is not asked, because it refuses every peer once a list is out of date. Here an expired list stays in
force, with a warning. Serials are random, so one list holds also across a change of the CA.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from edgeorch.errors import IdentityError

# What cryptography raises for a list that OpenSSL itself could parse.
_MALFORMED = (
    *(x509.InvalidVersion, x509.ExtensionNotFound, x509.DuplicateExtension),
    *(x509.UnsupportedGeneralNameType, UnsupportedAlgorithm),
)


@dataclass(frozen=True)
class Revocations:
    """One revocation list whose signature has been checked.

    Attributes:
        pem: the list as it came.
        number: higher is newer; 0 for no list.
        serials: of revoked certificates.
        expires_at: seconds since the epoch; None for never.
    """

    pem: bytes = b""
    number: int = 0
    serials: frozenset[int] = frozenset()
    expires_at: float | None = None

    def expired(self, wall: float) -> bool:
        """Whether a newer list should have come by now."""
        return self.expires_at is not None and self.expires_at < wall

    def signed_by(self, ca: x509.Certificate) -> bool:
        """Whether this CA signed it."""
        return bool(self.pem) and _signed_by(x509.load_pem_x509_crl(self.pem), ca)


def read_revocations(pem: bytes, cas: Sequence[x509.Certificate], source: str) -> Revocations:
    """Check and read a list.

    Args:
        pem: one PEM block.
        cas: the fleet's CAs; one of them must have signed it.
        source: where it came from, for the message.

    Raises:
        IdentityError: it is not a numbered revocation list (reason ``invalid``), or not of this fleet
            (reason ``wrong_ca``).
    """
    hint = "copy crl.pem again from the folder of the fleet's CA"
    try:
        crl = x509.load_pem_x509_crl(pem)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        serials = frozenset(entry.serial_number for entry in crl)
        expires = crl.next_update_utc
        genuine = any(_signed_by(crl, ca) for ca in cas)
    except (ValueError, *_MALFORMED):
        raise IdentityError(f"{source}: not a numbered revocation list", hint=hint) from None
    if not genuine:
        raise IdentityError(
            f"{source}: the revocation list is not signed by this fleet's CA", hint=hint, reason="wrong_ca"
        )
    return Revocations(
        pem=pem,
        number=number,
        serials=serials,
        expires_at=expires.timestamp() if expires else None,
    )


def _signed_by(crl: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
    key = ca.public_key()
    if crl.issuer != ca.subject:
        return False
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        return False
    try:
        return crl.is_signature_valid(key)
    except (InvalidSignature, ValueError, TypeError):
        return False
