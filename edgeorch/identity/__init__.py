"""Who is a node of the fleet: the CA, node certificates, TLS contexts, peer identity, revocation."""

from edgeorch.identity.authority import Authority, Issued
from edgeorch.identity.contexts import WIRE_ALPN
from edgeorch.identity.index import Entry
from edgeorch.identity.issue import WARN_DAYS
from edgeorch.identity.names import PeerIdentity, node_uri
from edgeorch.identity.node import Identity, load_identity
from edgeorch.identity.peer import handshake_error

__all__ = [
    "WARN_DAYS",
    "WIRE_ALPN",
    "Authority",
    "Entry",
    "Identity",
    "Issued",
    "PeerIdentity",
    "handshake_error",
    "load_identity",
    "node_uri",
]
