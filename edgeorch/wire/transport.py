"""TLS connections between nodes: how they are opened, and why they are refused, each reason in one word."""

import socket
import ssl
from dataclasses import dataclass
from typing import Protocol

import trio

from edgeorch.errors import NodeUnreachableError
from edgeorch.identity import WIRE_ALPN, Identity, PeerIdentity, handshake_error
from edgeorch.wire.tls_stream import PromptStream, TlsStream

_TLS_REASONS = {
    "HTTP_REQUEST": "not_tls",
    "HTTPS_PROXY_REQUEST": "not_tls",
    "WRONG_VERSION_NUMBER": "not_tls",
    "RECORD_LAYER_FAILURE": "not_tls",
    "PACKET_LENGTH_TOO_LONG": "not_tls",
    "UNSUPPORTED_PROTOCOL": "old_tls",
    "TLSV1_ALERT_PROTOCOL_VERSION": "old_tls",
    "UNEXPECTED_EOF_WHILE_READING": "closed",
}
"""OpenSSL's reasons that are not about certificates."""


class DialError(NodeUnreachableError):
    """No connection, or not the wanted one; nothing was asked on it.

    Attributes:
        reason: one word for logs and for the dialler: ``unreachable``, ``closed``, ``wrong_ca``, ``self``, …
        refused: one side does not want the other; a retry soon is of no use.
    """

    def __init__(self, detail: str, *, reason: str, refused: bool = False) -> None:
        super().__init__(detail, sent=False)
        self.reason = reason
        self.refused = refused


@dataclass(frozen=True)
class Secured:
    """A connection after its TLS handshake.

    Attributes:
        stream: carries bytes.
        address: IP address of the other end.
        certificate: the other end's, in DER.
    """

    stream: PromptStream
    address: str
    certificate: bytes


class Transport(Protocol):
    """Opens connections; tests have one in memory."""

    async def connect(self, host: str, port: int) -> Secured:
        """Dial; raises ``DialError``."""
        ...

    async def accept(self, stream: trio.SocketStream) -> Secured:
        """Secure an accepted connection; raises ``DialError``."""
        ...

    def verify(self, certificate: bytes, their_time: float = 0.0) -> PeerIdentity:
        """Who this is, as things stand now; raises ``IdentityError``. See ``Identity.verify_peer``."""
        ...


class Tls:
    """TLS 1.3 over TCP with both sides' certificates."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def connect(self, host: str, port: int) -> Secured:
        """Dial; a name is resolved and its addresses are raced."""
        try:
            tcp = await trio.open_tcp_stream(host, port)
        except (OSError, UnicodeError) as error:
            raise DialError(f"{host} port {port}: {_why(error)}", reason="unreachable") from None
        return await self._secure(tcp, self._identity.client_context(), server_side=False)

    async def accept(self, stream: trio.SocketStream) -> Secured:
        """Do the server's side of the handshake."""
        return await self._secure(stream, self._identity.server_context(), server_side=True)

    def verify(self, certificate: bytes, their_time: float = 0.0) -> PeerIdentity:
        """Who this is."""
        return self._identity.verify_peer(certificate, their_time)

    async def _secure(self, tcp: trio.SocketStream, context: ssl.SSLContext, *, server_side: bool) -> Secured:
        stream, address = TlsStream(tcp, context, server_side=server_side), ""
        try:
            address = _tune(tcp)
            await stream.do_handshake()
        except (trio.BrokenResourceError, OSError) as error:
            await trio.aclose_forcefully(tcp)
            raise _dial_error(address, error) from None
        except BaseException:
            await trio.aclose_forcefully(tcp)
            raise
        if stream.tls.selected_alpn_protocol() != WIRE_ALPN:
            await trio.aclose_forcefully(tcp)
            raise DialError(f"{address} does not speak {WIRE_ALPN}", reason="alpn", refused=True)
        return Secured(stream, address, stream.tls.getpeercert(binary_form=True) or b"")


def _dial_error(address: str, error: BaseException) -> DialError:
    about = handshake_error(error)
    if about is not None:
        return DialError(f"{address}: {about}", reason=about.reason, refused=True)
    cause = error.__cause__
    word = (cause.reason or "") if isinstance(cause, ssl.SSLError) else "UNEXPECTED_EOF_WHILE_READING"
    reason = _TLS_REASONS.get(word) or word.lower() or "closed"
    return DialError(f"{address}: no TLS connection: {reason}", reason=reason)


def _why(error: OSError | UnicodeError) -> str:
    """What the system says, also where Trio tried several addresses and names none of the failures."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    shown = cause if isinstance(cause, OSError) else error
    return getattr(shown, "strerror", None) or str(shown)


def _tune(tcp: trio.SocketStream) -> str:
    """Set the options of a new socket; returns the other end's address.

    Trio has set TCP_NODELAY. Membership finds dead peers sooner; these bound what it does not watch: a stream
    that is silent, and bytes that nobody acknowledges.
    """
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, 20),
        (socket.TCP_KEEPINTVL, 5),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, 30_000),
    ):
        tcp.setsockopt(socket.IPPROTO_TCP, option, value)
    return str(tcp.socket.getpeername()[0])
