"""What a node's certificate says about it: ``edgeorch://FLEET/node/NODE_ID`` (URI SAN) and its name (CN)."""

import math
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from edgeorch.errors import IdentityError
from edgeorch.model import CROCKFORD, NODE_ID_LENGTH

FLEET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
NODE_ID = re.compile(rf"[{CROCKFORD}]{{{NODE_ID_LENGTH}}}")


@dataclass(frozen=True)
class PeerIdentity:
    """A node as its certificate names it.

    Attributes:
        node_id: from the URI SAN; never changes.
        name: unique in the fleet.
        fleet: from the URI SAN.
        serial: of the certificate; revocation lists name it.
        not_before: seconds since the epoch.
        not_after: seconds since the epoch.
        ca_not_after: when the CA that signed it expires; unknown before ``verify``.
    """

    node_id: str
    name: str
    fleet: str
    serial: int
    not_before: float
    not_after: float
    ca_not_after: float = math.inf


def node_uri(fleet: str, node_id: str) -> str:
    """The URI SAN of a node."""
    return f"edgeorch://{fleet}/node/{node_id}"


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, in hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def read_names(certificate: x509.Certificate) -> PeerIdentity:
    """The identity in a certificate; nothing is verified here.

    Raises:
        IdentityError: with reason ``no_identity``; it does not name a node.
    """
    fleet, node_id = _uri_parts(certificate)
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = str(common[0].value) if common else ""
    if not NAME.fullmatch(name):
        raise IdentityError(f"the certificate of node {node_id} has no valid name", reason="no_identity")
    return PeerIdentity(
        node_id=node_id,
        name=name,
        fleet=fleet,
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )


def _uri_parts(certificate: x509.Certificate) -> tuple[str, str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        uris = []
    ours = [uri for uri in uris if uri.startswith("edgeorch://")]
    if len(ours) == 1:
        # Not urlsplit().hostname, which folds the fleet's name to lower case.
        fleet, _, rest = ours[0].removeprefix("edgeorch://").partition("/")
        node_id = rest.removeprefix("node/")
        if FLEET.fullmatch(fleet) and node_id != rest and NODE_ID.fullmatch(node_id):
            return fleet, node_id
    raise IdentityError(
        "the certificate names no edgeorch node",
        hint="make it with `edgeorch keys issue`",
        reason="no_identity",
    )
