"""Is this certificate one of our fleet's nodes, now? And why a handshake failed, in the same words."""

import datetime as dt
import ssl
from collections.abc import Sequence
from dataclasses import replace

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from edgeorch.errors import IdentityError
from edgeorch.identity.names import PeerIdentity, read_names
from edgeorch.identity.revocation import Revocations

# X509_V_ERR_* of openssl/x509_vfy.h that mean another CA.
_WRONG_CA = frozenset({2, 7, 18, 19, 20, 21, 24, 27, 29, 30, 31, 79})

NEW_CA = "make a new CA: rotate-keys.yml with -e rotate_ca=true, or `edgeorch keys rotate-ca`"
_CLOCK = "check the clocks of both nodes"
_RENEW = "run deploy.yml again, or renew it with `edgeorch keys issue`"


def verify(
    certificate: x509.Certificate,
    *,
    cas: Sequence[x509.Certificate],
    revocations: Revocations,
    fleet: str | None,
) -> PeerIdentity:
    """Check everything about a node's certificate but its dates.

    Args:
        certificate: the peer's, or one's own.
        cas: the fleet's CAs.
        revocations: the list in force.
        fleet: the fleet it must name; None for any.

    Raises:
        IdentityError: with a reason: ``wrong_ca``, ``no_identity``, ``wrong_fleet`` or ``revoked``.
    """
    signer = next((ca for ca in cas if issued_by(certificate, ca)), None)
    if signer is None:
        issuer = certificate.issuer.rfc4514_string()
        raise IdentityError(f"the certificate is from another CA ({issuer})", reason="wrong_ca")
    peer = read_names(certificate)
    who = f"the certificate of node {peer.name} ({peer.node_id})"
    if fleet is not None and peer.fleet != fleet:
        raise IdentityError(f"{who} is for fleet {peer.fleet}, not {fleet}", reason="wrong_fleet")
    if peer.serial in revocations.serials:
        hint = "if the node is to come back, remove its node_id and pki, and give it new ones"
        raise IdentityError(f"{who} is revoked", hint=hint, reason="revoked")
    return replace(peer, ca_not_after=signer.not_valid_after_utc.timestamp())


def check_dates(peer: PeerIdentity, wall: float, theirs: float = 0.0) -> None:
    """Whether a certificate is valid now, and if not, whose fault that is.

    A CA signs nothing that begins in the future, so a certificate that has not begun means a wrong clock. One
    that has ended here but not by the other side's clock means that the clocks differ: which of them is wrong
    cannot be known, but renewing the certificate would not help.

    Args:
        peer: as ``verify`` returned it.
        wall: now, seconds since the epoch.
        theirs: what the other side says that time it is; 0 where it did not say.

    Raises:
        IdentityError: with reason ``clock`` or ``expired``.
    """
    who = f"the certificate of node {peer.name} ({peer.node_id})"
    if wall < peer.not_before:
        raise IdentityError(
            f"{who} begins at {day_of(peer.not_before)}, and here it is {day_of(wall)}",
            hint=_CLOCK,
            reason="clock",
        )
    ends = min(peer.not_after, peer.ca_not_after)
    if wall > ends:
        whole = peer.ca_not_after <= peer.not_after
        detail = f"{'the CA that signed ' if whole else ''}{who} expired at {day_of(ends)}"
        if 0 < theirs <= ends:
            times = f"here it is {day_of(wall)}, there {day_of(theirs)}"
            raise IdentityError(f"{detail}, but {times}", hint=_CLOCK, reason="clock")
        raise IdentityError(detail, hint=NEW_CA if whole else _RENEW, reason="expired")


def handshake_error(error: BaseException) -> IdentityError | None:
    """Why a TLS handshake failed, or None where it is not about certificates.

    Looks through the causes of ``error`` (Trio wraps SSL errors). Besides the reasons of ``verify``, reason
    ``refused`` means that the other side did not accept our certificate. Dates are not looked at in the
    handshake (see ``contexts``).
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
    said = error.verify_message or "not accepted"
    reason = "wrong_ca" if error.verify_code in _WRONG_CA else "invalid"
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
