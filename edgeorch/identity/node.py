"""This node's own certificate, and what it needs to know others by theirs."""

import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from cryptography import x509

from edgeorch import files
from edgeorch.config import Loaded
from edgeorch.errors import ConfigError, IdentityError, StorageError
from edgeorch.host import clock_synchronised
from edgeorch.identity import own_key, pem
from edgeorch.identity.contexts import api_context, wire_context
from edgeorch.identity.names import NODE_ID, PeerIdentity, fingerprint
from edgeorch.identity.peer import check_dates, verify
from edgeorch.identity.revocation import Revocations, read_revocations

log = structlog.get_logger()

_REVOKED = "if the node is to come back, remove its node_id and pki, and run deploy.yml"
_COPY = "copy it from the folder that `edgeorch keys issue` made"


@dataclass(frozen=True)
class _Material:
    """What was read from the files, checked as a whole; replaced as a whole."""

    own: PeerIdentity
    cas: tuple[x509.Certificate, ...]
    revocations: Revocations
    server: ssl.SSLContext
    client: ssl.SSLContext
    api: ssl.SSLContext


class Identity:
    """Who this node is, and its TLS contexts. ``load_identity`` makes one.

    A context stays valid for the connections made from it; ask again for every new connection, so that a
    reload takes effect.
    """

    def __init__(
        self, loaded: Loaded, *, wall: Callable[[], float], clock_kept: Callable[[], bool | None]
    ) -> None:
        self._loaded = loaded
        self._wall = wall
        self._clock_kept = clock_kept
        self._warned = 0
        self._now = self._read()
        self._warn_if_outdated()
        if error := self._trouble():
            log.error("peers may refuse this node", reason=error.reason, detail=error.detail, fix=error.hint)

    @property
    def node_id(self) -> str:
        """Ten base32 characters; never changes."""
        return self._now.own.node_id

    @property
    def name(self) -> str:
        """The node's name, unique in the fleet."""
        return self._now.own.name

    @property
    def fleet(self) -> str:
        """The fleet's name."""
        return self._now.own.fleet

    @property
    def ca_fingerprints(self) -> tuple[str, ...]:
        """SHA-256 of every trusted CA certificate, in hex: two while the CA is being changed."""
        return tuple(fingerprint(ca) for ca in self._now.cas)

    @property
    def ca_fingerprint(self) -> str:
        """Of the first CA, the one that signs."""
        return self.ca_fingerprints[0]

    @property
    def not_after(self) -> float:
        """When the own certificate or its CA expires, seconds since the epoch."""
        return min(self._now.own.not_after, self._now.own.ca_not_after)

    @property
    def problem(self) -> str:
        """Why this node and others refuse each other now, in a sentence; empty for nothing."""
        error = self._trouble()
        return "" if error is None else error.detail

    def _trouble(self) -> IdentityError | None:
        if self.revoked:
            return IdentityError("this node's certificate is revoked", hint=_REVOKED, reason="revoked")
        try:
            check_dates(self._now.own, self._wall())
        except IdentityError as error:
            if error.reason != "clock":
                return error
            detail = f"this machine's clock is wrong: {error.detail}"
            return IdentityError(detail, hint="set it: timedatectl set-ntp true", reason="clock")
        return None

    @property
    def revoked(self) -> bool:
        """Whether the list in force names this node's own certificate."""
        return self._now.own.serial in self._now.revocations.serials

    @property
    def crl_number(self) -> int:
        """Number of the revocation list in force, 0 for none."""
        return self._now.revocations.number

    @property
    def crl_pem(self) -> bytes:
        """The revocation list in force, to pass on; empty for none."""
        return self._now.revocations.pem

    def server_context(self) -> ssl.SSLContext:
        """For connections that other nodes open: TLS 1.3, their certificate required."""
        return self._now.server

    def client_context(self) -> ssl.SSLContext:
        """For connections to other nodes: TLS 1.3, own certificate shown, host name not checked."""
        return self._now.client

    def api_context(self) -> ssl.SSLContext:
        """For the REST listener: ``api.tls_cert`` or the node's own certificate, no client certificate."""
        return self._now.api

    def verify_peer(self, der: bytes, their_time: float = 0.0) -> PeerIdentity:
        """Who is at the other end. Call after every handshake, on both sides.

        Args:
            der: the peer's certificate, ``getpeercert(binary_form=True)``.
            their_time: what time the peer says it is, seconds since the epoch; 0 where it did not say.

        Raises:
            IdentityError: with reason ``wrong_ca``, ``wrong_fleet``, ``expired``, ``clock``, ``revoked`` or
                ``no_identity``.
        """
        try:
            certificate = x509.load_der_x509_certificate(der)
        except (ValueError, TypeError):
            raise IdentityError("the peer showed no readable certificate", reason="no_identity") from None
        self._warn_if_outdated()
        now = self._now
        peer = verify(certificate, cas=now.cas, revocations=now.revocations, fleet=now.own.fleet)
        check_dates(peer, self._wall(), their_time)
        return peer

    def reload(self) -> None:
        """Read the files again; new connections use what is in them, open ones go on.

        Raises:
            ConfigError: a file is missing, unreadable or does not fit the others. The old ones stay in use.
            IdentityError: the new certificate is not valid, or is another node's. The old one stays in use.
        """
        fresh = self._read()
        if fresh.own.node_id != self.node_id:
            raise IdentityError(
                f"the new certificate is for node {fresh.own.node_id}, this is {self.node_id}",
                hint="restart the node to change its id",
                reason="other_node",
            )
        old = self._now.revocations
        if old.number > fresh.revocations.number:
            # It came from a peer and could not be kept; it may be of a CA that is trusted no longer.
            with contextlib.suppress(IdentityError):
                fresh = replace(fresh, revocations=read_revocations(old.pem, fresh.cas, "the list in force"))
        self._now = fresh
        self._warn_if_outdated()

    def take_crl(self, crl: bytes) -> bool:
        """Put a revocation list of a peer in force if it is newer, and keep a copy in the state folder.

        ``pki/crl.pem`` is the administrator's, and read-only for the node.

        Returns:
            Whether it was newer. Links to peers that it revokes are the caller's to close.

        Raises:
            IdentityError: it is not a list of this fleet.
        """
        now = self._now
        fresh = read_revocations(crl, now.cas, "a peer's list")
        if fresh.number <= now.revocations.number:
            return False
        self._now = replace(now, revocations=fresh)
        log.info("revocation list taken from a peer", number=fresh.number, revoked=len(fresh.serials))
        if self.revoked:
            log.error("this node's own certificate is revoked", node=self.node_id, name=self.name)
        self._warn_if_outdated()
        try:
            files.write(self._crl_copy, crl, 0o644)
        except StorageError as error:
            log.warning("revocation list not written; in force until the restart", reason=str(error))
        return True

    @property
    def _pki(self) -> Path:
        return self._loaded.resolve(self._loaded.config.pki.dir)

    @property
    def _crl_copy(self) -> Path:
        return Path(self._loaded.config.node.state_dir) / "crl.pem"

    def _newest_list(self, cas: tuple[x509.Certificate, ...]) -> Revocations:
        """The administrator's list, or the copy of a peer's where that is newer."""
        path, copy = self._pki / "crl.pem", self._crl_copy
        given = files.read_optional(path, "the revocation list")
        newest = Revocations() if given is None else read_revocations(given, cas, str(path))
        try:
            kept = files.read_optional(copy, "the copy of the revocation list")
            taken = read_revocations(kept, cas, str(copy)) if kept else newest
        except (ConfigError, IdentityError) as error:
            log.warning("a kept revocation list is not used", path=str(copy), reason=error.detail)
            return newest
        return taken if taken.number > newest.number else newest

    def _read(self) -> _Material:
        pki = self._pki
        ca_path, certificate_path = pki / "ca.pem", pki / "node.pem"
        ca_pem = files.read(ca_path, "the fleet's CA certificate")
        cas = pem.read_certificates(ca_pem, str(ca_path), _COPY)
        text = files.read(certificate_path, "the node's certificate")
        certificate = pem.read_certificates(text, str(certificate_path), _COPY)[0]
        key_path = own_key.fitting(pki, certificate)
        revocations = self._newest_list(cas)
        try:
            own = verify(certificate, cas=cas, revocations=revocations, fleet=None)
            self._check_own_dates(own)
        except IdentityError as error:
            raise _about_own(error, certificate_path, ca_path) from None
        self._check_names(own, certificate_path)
        api = self._loaded.config.api
        api_files = (self._loaded.resolve(api.tls_cert), self._loaded.resolve(api.tls_key))
        return _Material(
            own=own,
            cas=cas,
            revocations=revocations,
            server=wire_context(server=True, ca=ca_pem, certificate=certificate_path, key=key_path),
            client=wire_context(server=False, ca=ca_pem, certificate=certificate_path, key=key_path),
            api=api_context(*api_files if api.tls_cert else (certificate_path, key_path)),
        )

    def _check_own_dates(self, own: PeerIdentity) -> None:
        """Only what has certainly expired is refused.

        A node must not stay down because its clock came up wrong. A certificate that has not begun proves
        that the clock is behind. One that has ended proves something only where a time service keeps the
        clock: elsewhere the node starts, says it (``problem``), and takes up its peers by itself once the
        clock is right, or its keys when they are renewed.

        Raises:
            IdentityError: it has expired, and the clock can be believed.
        """
        try:
            check_dates(own, self._wall())
        except IdentityError as error:
            if error.reason != "clock" and self._clock_kept():
                raise

    def _check_names(self, own: PeerIdentity, certificate_path: Path) -> None:
        path = self._loaded.resolve(self._loaded.config.pki.node_id)
        kept = files.read_optional(path, "the node's id")
        if kept is not None:
            node_id = kept.decode("ascii", "replace").strip()
            if not NODE_ID.fullmatch(node_id):
                raise ConfigError(f"{path}: {node_id[:40]!r} is not a node id", hint=_COPY)
            if node_id != own.node_id:
                raise ConfigError(
                    f"{certificate_path} is for node {own.node_id}, but {path} says {node_id}",
                    hint=f"issue a certificate with --node-id {node_id}, or copy the whole folder again",
                )
        wanted = self._loaded.config.node.name
        if wanted and wanted != own.name:
            raise ConfigError(
                f"node.name is {wanted!r}, but {certificate_path} is for {own.name!r}",
                hint="remove node.name, or issue a certificate for that name",
            )

    def _warn_if_outdated(self) -> None:
        """Once per list."""
        revocations = self._now.revocations
        if revocations.number != self._warned and revocations.expired(self._wall()):
            self._warned = revocations.number
            log.warning("the revocation list is out of date and stays in force", number=revocations.number)


def load_identity(
    loaded: Loaded, *, wall: Callable[[], float], clock_kept: Callable[[], bool | None] = clock_synchronised
) -> Identity:
    """Read the node's certificate, key, CA and revocation list.

    Args:
        loaded: ``pki.dir`` holds ca.pem, node.pem, node.key and perhaps crl.pem; ``pki.node_id``
            may be missing.
        wall: seconds since the epoch.
        clock_kept: whether a time service keeps this machine's clock; None where nobody knows.

    Raises:
        ConfigError: a file is missing, unreadable or does not fit the others.
        IdentityError: the certificate is not from ca.pem, revoked, or certainly expired.
    """
    return Identity(loaded, wall=wall, clock_kept=clock_kept)


def _about_own(error: IdentityError, certificate_path: Path, ca_path: Path) -> IdentityError:
    if error.reason == "wrong_ca":
        return IdentityError(
            f"{certificate_path} is not from the CA in {ca_path}",
            hint="copy both from the same folder that `edgeorch keys issue` made",
            reason=error.reason,
        )
    return IdentityError(f"{certificate_path}: {error.detail}", hint=error.hint, reason=error.reason)
