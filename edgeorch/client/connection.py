"""What both clients share of HTTP: trust, headers, time limits and the errors of connections."""

import re
import socket
import ssl
from dataclasses import dataclass

import httpx2

from edgeorch import __version__
from edgeorch.client.endpoint import Endpoint
from edgeorch.client.steps import Call
from edgeorch.errors import ConfigError, NodeUnreachableError

CONNECT_S = 5.0
ANSWER_S = 30.0
"""A node answers within this time, plus what the call asks it to wait."""

# A stream may be silent for hours, so it has no read limit: the kernel's probes find a peer that is gone.
KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


@dataclass(frozen=True)
class Options:
    """What a connection to the endpoint needs."""

    verify: ssl.SSLContext | bool
    headers: dict[str, str]


def options_of(endpoint: Endpoint) -> Options:
    """Trust and headers.

    Raises:
        ConfigError: the CA file cannot be used.
    """
    headers = {"user-agent": f"edgeorch/{__version__}"}
    if endpoint.token:
        if not endpoint.token.isascii() or not endpoint.token.isprintable() or " " in endpoint.token:
            raise ConfigError("the token has characters that no token has", hint="copy it again, as one word")
        headers["authorization"] = f"Bearer {endpoint.token}"
    if not endpoint.url.startswith("https:"):
        return Options(verify=False, headers=headers)
    try:
        context = ssl.create_default_context(cafile=endpoint.ca or None)
    except (OSError, ssl.SSLError) as error:
        hint = "give the ca.pem that `edgeorch keys init` made"
        raise ConfigError(f"{endpoint.ca}: cannot be used as CA file: {error}", hint=hint) from None
    return Options(verify=context, headers=headers)


def request_of(
    http: httpx2.Client | httpx2.AsyncClient, call: Call, *, stream: bool = False
) -> httpx2.Request:
    """The call as a request; a stream may be silent for as long as it likes."""
    silence_s = None if stream else ANSWER_S + call.wait_s
    return http.build_request(
        call.method,
        call.path,
        params=call.params,
        headers=call.headers,
        content=call.body,
        timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S, read=silence_s),
    )


def gone(endpoint: Endpoint, error: httpx2.TransportError) -> NodeUnreachableError:
    """A connection that cannot be made or broke, as an error with what to do."""
    sent = not isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout))
    hint = "is the node running, and is this its address (--url, EDGEORCH_URL)?"
    cause: BaseException | None = error
    reason = ""
    # On Trio the sentence is somewhere down the chain of causes.
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message
            hint = (
                "give the fleet's CA file with --ca or EDGEORCH_CA, and an address that the certificate names"
            )
            break
        reason = reason or re.sub(r"^\[Errno -?\d+\] ", "", str(cause))
        cause = cause.__cause__ or cause.__context__
    if not reason:
        reason = "no answer in time" if isinstance(error, httpx2.TimeoutException) else type(error).__name__
    return NodeUnreachableError(f"{endpoint.url} does not answer: {reason}", hint=hint, sent=sent)
