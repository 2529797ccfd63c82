"""Who calls the REST API: tokens, failed tries, and callers on loopback that may be a browser."""

import hmac
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

import structlog
import trio

from edgeorch.addresses import is_loopback
from edgeorch.config import Api
from edgeorch.errors import (
    ConfigError,
    ForbiddenError,
    TooManyRequestsError,
    UnauthorizedError,
    UnsupportedMediaTypeError,
)
from edgeorch.model import Caller
from edgeorch.rest.tokens import RESERVED, Token, hash_of, read_tokens

log = structlog.get_logger()

_CHECK_S = 1.0
_LONGEST = 256
_HOW = "send Authorization: Bearer TOKEN; make one with `edgeorch token create`"
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+))(?::[0-9]{1,5})?")
# What a page of another site may send without asking first (Fetch standard, "CORS-safelisted").
_SIMPLE_TYPES = frozenset({"text/plain", "multipart/form-data", "application/x-www-form-urlencoded"})


class Tokens:
    """The tokens that this node accepts; a change of the file counts within a second."""

    def __init__(self, path: Path, api: Api, *, clock: Callable[[], float] = trio.current_time) -> None:
        """Read the file. One that is not there means that there are no tokens.

        Args:
            path: ``api.tokens``, resolved.
            api: the ``[api]`` section.
            clock: monotonic seconds.

        Raises:
            ConfigError: it cannot be used.
        """
        self._path = path
        self._api = api
        self._clock = clock
        self.on_refused: Callable[[str, str], None] = lambda _source, _why: None
        """Called with the source of each refused login (an address, or an IPv6 network) and the reason."""
        self._failures = FailedTries(api.failed_logins_per_minute)
        self._tokens: tuple[Token, ...] = ()
        self._stamp: tuple[int, ...] | None = None
        self._checked_at = clock()
        self.reload()

    def reload(self) -> None:
        """Read the file now.

        Raises:
            ConfigError: it cannot be used; the tokens that were read before stay in force.
        """
        self._stamp = self._look()
        if self._stamp is None:
            self._tokens = ()
            return
        try:
            data = self._path.read_bytes()
        except OSError as error:
            hint = "check its owner and permissions"
            raise ConfigError(f"{self._path}: {error.strerror}", hint=hint) from None
        self._tokens = read_tokens(data, str(self._path))

    def authenticate(self, header: str | None, address: str, now: float) -> Caller:
        """Who sends a request.

        Args:
            header: the ``Authorization`` header, None where there is none.
            address: of the caller.
            now: seconds since the epoch.

        Raises:
            UnauthorizedError: no token, or an unknown or expired one.
            TooManyRequestsError: the same after too many failed tries from this address. A good token is
                let in even then, so that nobody can lock others out.
        """
        loopback = is_loopback(address)
        if header is None:
            if not loopback or self._api.anonymous_role == "none":
                raise UnauthorizedError("this needs a token", hint=_HOW)
            role = self._api.anonymous_role
            return Caller(token=RESERVED, role=role, loopback=True, address=address)
        self._follow()
        scheme, _, text = header.partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer" or not text or len(text) > _LONGEST:
            raise self._failed(address, "the Authorization header is not Bearer TOKEN")
        token = self._find(text)
        if token is None:
            raise self._failed(address, "the token is unknown or revoked")
        if token.expired(now):
            raise self._failed(address, f"the token {token.name!r} has expired")
        return Caller(token=token.name, role=token.role, loopback=loopback, address=address)

    def _find(self, text: str) -> Token | None:
        """Compares with every token, so that the time says nothing about how close a guess was."""
        digest, found = hash_of(text), None
        for token in self._tokens:
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return found

    def _failed(self, address: str, why: str) -> UnauthorizedError | TooManyRequestsError:
        self.on_refused(_source(address), why)
        wait_s = self._failures.add(address, self._clock())
        if wait_s:
            hint = f"try again in {wait_s:.0f} s, with a valid token"
            return TooManyRequestsError("too many failed tries from this address", hint=hint)
        log.warning("refused a login", address=address, reason=why)
        return UnauthorizedError(why, hint=_HOW)

    def _follow(self) -> None:
        """Take a changed file into use; looks at most once a second."""
        now = self._clock()
        if now - self._checked_at < _CHECK_S:
            return
        self._checked_at = now
        if self._look() == self._stamp:
            return
        try:
            self.reload()
        except ConfigError as error:
            # Said once: the stamp is the bad file's now, until it changes again.
            log.warning("the new tokens cannot be used; the old ones stay in force", reason=str(error))
        else:
            log.info("tokens read again", path=str(self._path), tokens=len(self._tokens))

    def _look(self) -> tuple[int, ...] | None:
        """What changes when the file does (also its permissions); None where there is none."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            return (error.errno or 0,)  # Reading it will say what is wrong.
        return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino


class FailedTries:
    """Failed logins per address: a bucket of ``per_minute`` tries that fills again in a minute.

    An IPv6 caller counts by its /64 network, because it has all of those addresses. Only the addresses
    that failed last are kept.
    """

    def __init__(self, per_minute: int, *, kept: int = 4096) -> None:
        self._size = per_minute
        self._kept = kept
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def add(self, address: str, now: float) -> float:
        """Count one failure; returns the seconds until the next may be tried, 0.0 within the limit."""
        source = _source(address)
        spent, since = self._spent.pop(source, (0.0, now))
        per_second = self._size / 60
        spent = max(0.0, spent - (now - since) * per_second)
        over = spent + 1 > self._size
        self._spent[source] = (spent if over else spent + 1, now)
        if len(self._spent) > self._kept:
            self._spent.popitem(last=False)
        return max((spent + 1 - self._size) / per_second, 0.001) if over else 0.0


def check_browser(headers: Mapping[str, str]) -> None:
    """Refuse what only a web page of another site would send to an unauthenticated loopback API.

    A page cannot set ``Host`` or ``Origin``; a name that was rebound to 127.0.0.1 shows in ``Host``.

    Args:
        headers: of the request; lower-case names, or a mapping that ignores case.

    Raises:
        ForbiddenError: ``Host`` is not loopback, or ``Origin`` is another one.
        UnsupportedMediaTypeError: the body is of a kind that any page may send.
    """
    host = headers.get("host", "")
    if not _is_local_host(host):
        raise ForbiddenError(
            f"without a token the Host header must be localhost, not {host[:80]!r}",
            hint="call 127.0.0.1 or localhost, or send a token",
        )
    origin = headers.get("origin")
    if origin is not None and _netloc(origin) != host.lower():
        raise ForbiddenError(
            f"a page of {origin[:80]!r} may not call this API without a token", hint="send a token"
        )
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _SIMPLE_TYPES or (origin is not None and kind not in {"", "application/json"}):
        raise UnsupportedMediaTypeError(
            f"the body is {kind}, not JSON", hint="send Content-Type: application/json"
        )


def _netloc(origin: str) -> str:
    """``HOST:PORT`` of an Origin, in lower case; empty for ``null`` and what is no URL."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_local_host(host: str) -> bool:
    match = _HOST.fullmatch(host)
    name = (match[1] or match[2]).lower() if match else ""
    return name == "localhost" or is_loopback(name)


def _source(address: str) -> str:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(ip_network((parsed, 64), strict=False))
    return str(parsed)
