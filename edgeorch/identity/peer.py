"""Is this certificate one of our fleet's nodes, now? And why a handshake failed, in the same words."""

import datetime as dt
import ssl
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from edgeorch.errors import IdentityError
from edgeorch.identity.names import PeerIdentity, read_names
from edgeorch.identity.revocation import Revocations

# X509_V_ERR_* of openssl/x509_vfy.h; those not named here are kept as OpenSSL says them.
_NOT_YET_VALID = 9
_EXPIRED = 10
_REVOKED = 23
_WRONG_CA = frozenset({2, 7, 18, 19, 20, 21, 24, 27, 29, 30, 31, 79})

_CLOCK = "check the clocks of both nodes"
_RENEW = "renew it with `edgeorch keys issue`"
NEW_CA = "make a new CA: rotate-keys.yml with -e rotate_ca=true, or `edgeorch keys rotate-ca`"


def verify(
    certificate: x509.Certificate,
    *,
    cas: Sequence[x509.Certificate],
    revocations: Revocations,
    fleet: str | None,
    wall: float,
) -> PeerIdentity:
    """Check a node's certificate.

    Args:
        certificate: the peer's, or one's own.
        cas: the fleet's CAs.
        revocations: the list in force.
        fleet: the fleet it must name; None for any.
        wall: now, seconds since the epoch.

    Raises:
        IdentityError: with a reason: ``wrong_ca``, ``no_identity``, ``wrong_fleet``, ``expired``,
            ``not_yet_valid`` or ``revoked``.
    """
    signer = next((ca for ca in cas if issued_by(certificate, ca)), None)
    if signer is None:
        issuer = certificate.issuer.rfc4514_string()
        raise IdentityError(f"the certificate is from another CA ({issuer})", reason="wrong_ca")
    peer = read_names(certificate)
    who = f"the certificate of node {peer.name} ({peer.node_id})"
    if fleet is not None and peer.fleet != fleet:
        raise IdentityError(f"{who} is for fleet {peer.fleet}, not {fleet}", reason="wrong_fleet")
    if wall < peer.not_before:
        raise IdentityError(
            f"{who} is not valid before {day_of(peer.not_before)}", hint=_CLOCK, reason="not_yet_valid"
        )
    if wall > peer.not_after:
        raise IdentityError(f"{who} expired at {day_of(peer.not_after)}", hint=_RENEW, reason="expired")
    if wall > signer.not_valid_after_utc.timestamp():
        raise IdentityError("the fleet's CA expired", hint="make a new CA", reason="expired")
    if peer.serial in revocations.serials:
        hint = "make a new one with `edgeorch keys issue` if the node is to come back"
        raise IdentityError(f"{who} is revoked", hint=hint, reason="revoked")
    return peer


def handshake_error(error: BaseException) -> IdentityError | None:
    """Why a TLS handshake failed, or None where it is not about certificates.

    Looks through the causes of ``error`` (Trio wraps SSL errors). Besides the reasons of ``verify``, reason
    ``refused`` means that the other side did not accept our certificate.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ssl.SSLError):
        seen = seen.__cause__ or seen.__context__
    if isinstance(seen, ssl.SSLCertVerificationError):
        return _verification_error(seen)
    word = (getattr(seen, "reason", None) or "") if seen else ""
    if word == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return IdentityError("the peer showed no certificate", reason="no_identity")
    if "ALERT" in word and ("CERTIFICATE" in word or "UNKNOWN_CA" in word):
        said = word.partition("ALERT_")[2].replace("_", " ").lower()
        return IdentityError(
            f"the peer refused our certificate: {said}",
            hint="its log says why; `edgeorch keys show` lists what was issued",
            reason="refused",
        )
    return None


def _verification_error(error: ssl.SSLCertVerificationError) -> IdentityError:
    code = error.verify_code
    said = error.verify_message or "not accepted"
    if code == _NOT_YET_VALID:
        return IdentityError("the peer's certificate is not yet valid", hint=_CLOCK, reason="not_yet_valid")
    if code == _EXPIRED:
        return IdentityError("the peer's certificate has expired", hint=_RENEW, reason="expired")
    if code == _REVOKED:
        return IdentityError("the peer's certificate is revoked", reason="revoked")
    reason = "wrong_ca" if code in _WRONG_CA else "invalid"
    hint = "all nodes of a fleet need certificates of the same CA" if reason == "wrong_ca" else ""
    return IdentityError(f"the peer's certificate cannot be verified: {said}", hint=hint, reason=reason)


def issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether the CA has signed this certificate."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def day_of(seconds: float) -> str:
    """A time for people."""
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
