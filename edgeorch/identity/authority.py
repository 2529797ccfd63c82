"""The fleet's CA as a folder on the controller: its key, what it has issued, and the revocation list."""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.serialization import Encoding

from edgeorch import files
from edgeorch.errors import ConflictError, InvalidRequestError, NotFoundError
from edgeorch.identity import issue, pem
from edgeorch.identity.ca_files import KEY, CaFiles, Signer, check_in_date
from edgeorch.identity.index import Entry, Index
from edgeorch.identity.names import FLEET, fingerprint
from edgeorch.identity.revocation import Revocations, read_revocations
from edgeorch.identity.rotation import Rotation
from edgeorch.identity.signing import Answer, Request, Wish, issue_one, sign
from edgeorch.model import new_node_id


@dataclass(frozen=True)
class Issued:
    """The files of one node, ready for ``/etc/edgeorch``. ``key`` is None where the node made its own."""

    entry: Entry
    certificate: bytes
    key: bytes | None
    ca: bytes
    crl: bytes

    def write(self, folder: Path) -> None:
        """Write ``node_id`` and ``pki/{ca.pem,node.pem,node.key,crl.pem}`` below ``folder``.

        Raises:
            StorageError: the folder cannot be written.
        """
        pki = folder / "pki"
        files.make_folder(pki)
        files.write(pki / "ca.pem", self.ca, 0o644)
        files.write(pki / "node.pem", self.certificate, 0o644)
        if self.key is not None:
            files.write(pki / "node.key", self.key, 0o600)
        files.write(pki / "crl.pem", self.crl, 0o644)
        files.write(folder / "node_id", f"{self.entry.id}\n".encode(), 0o644)


class Authority:
    """A fleet CA. Its folder holds ca.pem, ca.key, crl.pem and index.json.

    Several processes may use one folder at a time: each change holds the folder's lock.
    """

    def __init__(self, folder: Path, passphrase: bytes | None, wall: Callable[[], float]) -> None:
        """Use ``create`` or ``open``."""
        self._ca = CaFiles(folder, passphrase, wall)

    @classmethod
    def create(
        cls,
        folder: Path,
        fleet: str,
        *,
        passphrase: bytes | None = None,
        wall: Callable[[], float] = time.time,
    ) -> Self:
        """Make a new CA in ``folder``, which may not hold one yet.

        Args:
            folder: made where it is missing.
            fleet: the fleet's name.
            passphrase: encrypts the key; None leaves it plain, for the file's owner only.
            wall: seconds since the epoch.

        Raises:
            InvalidRequestError: the fleet's name is not valid.
            ConflictError: there is a CA.
            StorageError: the folder cannot be written.
        """
        if not FLEET.fullmatch(fleet):
            raise InvalidRequestError(
                f"{fleet!r} cannot name a fleet", hint="1 to 40 letters, digits, dots, dashes and underscores"
            )
        files.make_folder(folder)
        with files.locked(folder):
            for name in ("ca.key", "ca.pem", "index.json"):
                if (folder / name).exists():
                    hint = "use it, or choose another folder with --dir"
                    raise ConflictError(f"{folder} already holds a fleet's CA ({name})", hint=hint)
            key = issue.new_key()
            certificate = issue.ca_certificate(key, fleet, wall())
            # The index is last: a folder without one is not in use.
            ca = CaFiles(folder, passphrase, wall)
            ca.write_key(KEY, key)
            ca.write_bundle([certificate])
            ca.keep(Index(fleet=fleet, crl_number=1), Signer(certificate, key))
        return cls(folder, passphrase, wall)

    @classmethod
    def open(
        cls, folder: Path, *, passphrase: bytes | None = None, wall: Callable[[], float] = time.time
    ) -> Self:
        """Use the CA in ``folder``. The key is read, and the passphrase needed, only to sign.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        authority = cls(folder, passphrase, wall)
        _ = authority.fingerprints, authority.index()
        return authority

    @property
    def folder(self) -> Path:
        """Where the CA is kept."""
        return self._ca.folder

    @property
    def ca_pem(self) -> bytes:
        """What nodes and clients are to trust: one CA, or two while it is being changed."""
        return self._ca.bundle_pem

    @property
    def crl_pem(self) -> bytes:
        """The revocation list."""
        return self._ca.crl_pem

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """SHA-256 of the trusted CA certificates, in hex; the first one signs."""
        return tuple(fingerprint(ca) for ca in self._ca.bundle)

    @property
    def fingerprint(self) -> str:
        """Of the CA that signs now."""
        return self.fingerprints[0]

    @property
    def not_after(self) -> float:
        """When the CA that signs now expires, seconds since the epoch."""
        return self._ca.bundle[0].not_valid_after_utc.timestamp()

    def index(self) -> Index:
        """What was issued and revoked.

        Raises:
            ConfigError: the index cannot be read.
        """
        return self._ca.index()

    def issue(
        self,
        name: str,
        addresses: Sequence[str] = (),
        *,
        node_id: str | None = None,
        public_key: bytes | None = None,
        replace: bool = False,
        days: float = issue.NODE_DAYS,
    ) -> Issued:
        """Issue a certificate.

        Args:
            name: the node's name, unique in the fleet.
            addresses: IP addresses and host names under which REST clients reach the node.
            node_id: renew this node's certificate, or use the id made on the node; None makes a new id.
            public_key: PEM of the key made on the node; None makes a key here.
            replace: revoke the node that has the name now.
            days: until it expires.

        Raises:
            InvalidRequestError: a name, address, id, key or number of days cannot be used.
            ConflictError: the name belongs to another node, or the id to another name or a revoked node.
            ConfigError: the CA's key cannot be read, or the CA has expired.
            StorageError: the folder cannot be written.
        """
        made = issue.new_key() if public_key is None else None
        wish = Wish(
            name=name,
            node_id=node_id or new_node_id(random.SystemRandom()),
            key=made.public_key() if made else pem.read_public(public_key or b""),
            addresses=tuple(addresses),
            replace=replace,
            days=days,
        )
        with self._locked():
            now, signer = self._ca.wall(), self._ca.signer()
            check_in_date(signer.certificate, now)
            index, entry, certificate = issue_one(self.index(), signer, wish, now)
            crl = self._ca.keep(index, signer)
            bundle = self.ca_pem
        return Issued(
            entry=entry,
            certificate=certificate.public_bytes(Encoding.PEM),
            key=pem.write_private(made) if made else None,
            ca=bundle,
            crl=crl,
        )

    def sign(self, requests: Sequence[Request], *, check: bool = False) -> Answer:
        """Sign for the nodes of a whole play; see ``signing.sign``."""
        with self._locked():
            return sign(self._ca, requests, check=check)

    def revoke(self, name_or_id: str) -> Entry:
        """Put every certificate of a node on the revocation list; again for a revoked one changes nothing.

        Raises:
            NotFoundError: no such node.
            ConfigError: the CA's key cannot be read.
            StorageError: the folder cannot be written.
        """
        with self._locked():
            index, signer = self.index(), self._ca.signer()
            by_id = next((entry for entry in index.nodes if entry.id == name_or_id), None)
            entry = index.holder(name_or_id) or by_id
            if entry is None:
                hint = "`edgeorch keys show` lists the nodes"
                raise NotFoundError(f"no node {name_or_id!r} in fleet {index.fleet}", hint=hint)
            if entry.revoked_at is None:
                index = index.revoke(entry.id, self._ca.wall())
            self._ca.keep(index, signer)
            return next(other for other in index.nodes if other.id == entry.id)

    def renew_list(self) -> bool:
        """Sign the revocation list afresh where it ends soon; returns whether it did.

        Raises:
            ConfigError: the CA's key cannot be read.
            StorageError: the folder cannot be written.
        """
        with self._locked():
            before = self.crl_pem
            return self._ca.keep(self.index(), self._ca.signer()) != before

    def list_in_force(self) -> Revocations:
        """The revocation list, read.

        Raises:
            IdentityError: it is damaged or missing.
        """
        return read_revocations(self.crl_pem, self._ca.bundle, str(self.folder / "crl.pem"))

    def rotation(self) -> Rotation:
        """How far the change of the CA has come, and its steps."""
        return Rotation(self._ca)

    def _locked(self) -> AbstractContextManager[None]:
        return files.locked(self.folder)
