"""TLS contexts: between nodes TLS 1.3 with a certificate at both ends, for REST a server certificate only."""

import ssl
from pathlib import Path

from edgeorch.errors import ConfigError

WIRE_ALPN = "edgeorch/1"
API_ALPN = ("http/1.1",)

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of openssl/x509_vfy.h, which ``ssl`` does not name."""


def wire_context(*, server: bool, ca: bytes, certificate: Path, key: Path) -> ssl.SSLContext:
    """A context for one end of a node-to-node connection.

    The host name is not checked: a peer is known by the node id in its certificate, not by its address. Dates
    are left to ``Identity.verify_peer`` right after the handshake: only then can two nodes whose clocks
    differ tell each other what time it is, and refuse each other for that instead of a bad certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= NO_CHECK_TIME
    if server:
        # Resumed sessions would skip the certificate, and tickets are bytes that a client may never read.
        context.num_tickets = 0
    context.set_alpn_protocols([WIRE_ALPN])
    try:
        context.load_verify_locations(cadata=ca.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the fleet's CA certificates cannot be used: {error}") from None
    _load_chain(context, certificate, key)
    return context


def api_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A context for the REST listener: TLS 1.2 or newer, no client certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(API_ALPN))
    _load_chain(context, certificate, key)
    return context


def _load_chain(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        # Without the password argument OpenSSL asks for one on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as error:
        hint = "the key must be the certificate's own, in PEM, without a passphrase"
        raise ConfigError(f"{certificate} and {key} cannot be used: {error.reason}", hint=hint) from None
    except OSError as error:
        where = f"{certificate} or {key}"
        raise ConfigError(f"{where}: {error.strerror}", hint="check owner and permissions") from None
