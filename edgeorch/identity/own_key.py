"""A node's own private key on its disk: the one in force, and the next one while keys are being replaced.

A key and its certificate are two files, and a crash may come between them. So a new key is written beside the
old one first, and what puts it in force is the certificate alone: the key that fits is the node's.
"""

from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from edgeorch import files
from edgeorch.errors import ConfigError
from edgeorch.identity import pem
from edgeorch.identity.issue import PublicKey

log = structlog.get_logger()

KEY = "node.key"
NEXT_KEY = "node.next.key"


def public_key(path: Path) -> PublicKey:
    """The public half of a key file.

    Raises:
        ConfigError: it is missing, unreadable or of a kind that nodes do not use.
    """
    public = pem.read_private(files.read(path, "the node's key"), None, str(path)).public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise ConfigError(f"{path}: this kind of key cannot be used", hint="remove it and deploy again")
    return public


def fitting(pki: Path, certificate: x509.Certificate) -> Path:
    """Which key file belongs to the node's certificate.

    Raises:
        ConfigError: none does.
    """
    path, fresh = pki / KEY, pki / NEXT_KEY
    if fresh.exists() and public_key(fresh) == certificate.public_key():
        path = fresh
    elif public_key(path) != certificate.public_key():
        raise ConfigError(
            f"{path} is not the key of {pki / 'node.pem'}",
            hint="run deploy.yml again, or copy both from the same folder",
        )
    if path.stat().st_mode & 0o007:
        log.warning("the node's key is open to every user of this machine", path=str(path), fix="chmod o= it")
    return path
