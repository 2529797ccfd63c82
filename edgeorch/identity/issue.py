"""The three things a fleet CA signs: itself, node certificates and revocation lists (RFC 5280)."""

import datetime as dt
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgeorch.identity.names import node_uri

DAY = 86_400.0
CA_DAYS = 3650
NODE_DAYS = 397
CRL_DAYS = 397
WARN_DAYS = 60
"""What ends within this time is worth a warning, and is made anew when the controller is asked to sign."""
BACKDATED = 2 * DAY
"""Certificates begin this long ago, because a node without a battery clock may be behind."""

CA_NAME = "edgeorch fleet "
"""Before the fleet's name in the subject of its CA."""

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def ca_certificate(key: ec.EllipticCurvePrivateKey, fleet: str, wall: float) -> x509.Certificate:
    """The fleet's self-signed CA; it signs node certificates and revocation lists, no further CAs."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{CA_NAME}{fleet}")])
    return (
        _certificate(name, name, key.public_key(), key.public_key(), wall, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def node_certificate(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    key: PublicKey,
    *,
    fleet: str,
    node_id: str,
    name: str,
    addresses: Sequence[str],
    wall: float,
    days: float,
) -> x509.Certificate:
    """A certificate for one node, for both ends of TLS.

    Args:
        ca: the fleet's CA.
        ca_key: its key.
        key: the node's public key.
        fleet: the fleet's name.
        node_id: the node's id.
        name: the node's name; common name and first DNS SAN.
        addresses: IP addresses and host names for the SANs.
        wall: now, seconds since the epoch.
        days: until it expires, at most as long as the CA.
    """
    left_s = ca.not_valid_after_utc.timestamp() - wall
    return (
        _certificate(subject_of(name), ca.subject, key, ca_key.public_key(), wall, min(days, left_s / DAY))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName(alternative_names(node_uri(fleet, node_id), name, addresses)),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )


def revocation_list(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    revoked: Iterable[tuple[int, float]],
    *,
    number: int,
    wall: float,
) -> x509.CertificateRevocationList:
    """A revocation list.

    Args:
        ca: the fleet's CA.
        ca_key: its key.
        revoked: (serial, when) of each revoked certificate, in seconds since the epoch.
        number: of the list; higher replaces lower.
        wall: now.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(_time(wall - BACKDATED))
        .next_update(_time(wall + CRL_DAYS * DAY))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
    )
    for serial, when in sorted(revoked):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_time(when)).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(ca_key, hashes.SHA256())


def _certificate(  # noqa: PLR0917  each argument is one field of the certificate, in its order
    subject: x509.Name, issuer: x509.Name, key: PublicKey, issuer_key: PublicKey, wall: float, days: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(wall - BACKDATED))
        .not_valid_after(_time(wall + days * DAY))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def subject_of(name: str) -> x509.Name:
    """The subject of a node's certificate."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def alternative_names(uri: str, name: str, addresses: Sequence[str]) -> list[x509.GeneralName]:
    """What a node's certificate is good for: its id, its name here and in mDNS, and its addresses."""
    in_mdns = [] if _is_ip(name) else [f"{name.partition('.')[0]}.local"]
    wanted = (name, *in_mdns, *addresses)
    return [
        x509.UniformResourceIdentifier(uri),
        *(
            x509.IPAddress(ip_address(text)) if _is_ip(text) else x509.DNSName(text)
            for text in dict.fromkeys(wanted)
        ),
    ]


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _time(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
