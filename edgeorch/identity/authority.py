"""The fleet's CA as a folder on the controller: its key, what it has issued, and the revocation list."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from edgeorch import files
from edgeorch.errors import ConfigError, ConflictError, InvalidRequestError, NotFoundError
from edgeorch.identity import issue, pem
from edgeorch.identity.index import Entry, Index, read_index
from edgeorch.identity.names import FLEET, NAME, NODE_ID
from edgeorch.identity.node import fingerprint
from edgeorch.identity.revocation import read_revocations
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
        self._folder = folder
        self._passphrase = passphrase
        self._wall = wall
        self.ca_pem = files.read(folder / "ca.pem", "the CA certificate")
        try:
            self._ca = x509.load_pem_x509_certificate(self.ca_pem)
        except ValueError:
            raise ConfigError(f"{folder / 'ca.pem'}: not a PEM certificate") from None

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
            files.write(folder / "ca.key", pem.write_private(key, passphrase), 0o600)
            files.write(folder / "ca.pem", certificate.public_bytes(Encoding.PEM), 0o644)
            crl = issue.revocation_list(certificate, key, (), number=1, wall=wall())
            files.write(folder / "crl.pem", crl.public_bytes(Encoding.PEM), 0o644)
            files.write(folder / "index.json", Index(fleet=fleet, crl_number=1).json(), 0o600)
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
        authority.index()
        return authority

    @property
    def folder(self) -> Path:
        """Where the CA is kept."""
        return self._folder

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the CA certificate, in hex."""
        return fingerprint(self._ca)

    @property
    def not_after(self) -> float:
        """When the CA certificate expires, seconds since the epoch."""
        return self._ca.not_valid_after_utc.timestamp()

    def index(self) -> Index:
        """What was issued and revoked.

        Raises:
            ConfigError: the index cannot be read.
        """
        path = self._folder / "index.json"
        return read_index(files.read(path, "the list of issued certificates"), str(path))

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
            ConfigError: the CA's key cannot be read.
            StorageError: the folder cannot be written.
        """
        _check_wish(name, addresses, node_id, days)
        made = None
        if public_key is None:
            made = issue.new_key()
            public: issue.PublicKey = made.public_key()
        else:
            public = pem.read_public(public_key)
        with files.locked(self._folder):
            index, now, ca_key = self.index(), self._wall(), self._key()
            node_id = node_id or new_node_id(random.SystemRandom())
            known = index.entry_for(name, node_id)
            holder = index.holder(name)
            if holder and holder.id != node_id:
                if not replace:
                    hint = f"--replace revokes that node, --node-id {holder.id} renews its certificate"
                    raise ConflictError(f"the name {name!r} belongs to node {holder.id}", hint=hint)
                index = index.revoke(holder.id, now)
            certificate = issue.node_certificate(
                self._ca,
                ca_key,
                public,
                fleet=index.fleet,
                node_id=node_id,
                name=name,
                addresses=addresses,
                wall=now,
                days=days,
            )
            entry = Entry(
                id=node_id,
                name=name,
                addresses=tuple(addresses),
                serials=(*(known.serials if known else ()), f"{certificate.serial_number:x}"),
                expires_at=certificate.not_valid_after_utc.timestamp(),
            )
            index = index.with_entry(entry)
            crl = self._keep(index, ca_key)
        return Issued(
            entry=entry,
            certificate=certificate.public_bytes(Encoding.PEM),
            key=pem.write_private(made) if made else None,
            ca=self.ca_pem,
            crl=crl,
        )

    def revoke(self, name_or_id: str) -> Entry:
        """Put every certificate of a node on the revocation list; again for a revoked one changes nothing.

        Raises:
            NotFoundError: no such node.
            ConfigError: the CA's key cannot be read.
            StorageError: the folder cannot be written.
        """
        with files.locked(self._folder):
            index, ca_key = self.index(), self._key()
            by_id = next((entry for entry in index.nodes if entry.id == name_or_id), None)
            entry = index.holder(name_or_id) or by_id
            if entry is None:
                hint = "`edgeorch keys show` lists the nodes"
                raise NotFoundError(f"no node {name_or_id!r} in fleet {index.fleet}", hint=hint)
            if entry.revoked_at is None:
                index = index.revoke(entry.id, self._wall())
            self._keep(index, ca_key)
            return next(other for other in index.nodes if other.id == entry.id)

    def _keep(self, index: Index, ca_key: ec.EllipticCurvePrivateKey) -> bytes:
        """Write the index, then the list where it is behind (also after a crash between the two)."""
        files.write(self._folder / "index.json", index.json(), 0o600)
        path = self._folder / "crl.pem"
        kept = files.read_optional(path, "the revocation list")
        if kept and read_revocations(kept, (self._ca,), str(path)).number == index.crl_number:
            return kept
        crl = issue.revocation_list(
            self._ca, ca_key, index.revoked(), number=index.crl_number, wall=self._wall()
        )
        fresh = crl.public_bytes(Encoding.PEM)
        files.write(path, fresh, 0o644)
        return fresh

    def _key(self) -> ec.EllipticCurvePrivateKey:
        path = self._folder / "ca.key"
        key = pem.read_private(files.read(path, "the CA's key"), self._passphrase, str(path))
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self._ca.public_key():
            raise ConfigError(f"{path} is not the key of ca.pem", hint="restore both from the same backup")
        return key


def _check_wish(name: str, addresses: Sequence[str], node_id: str | None, days: float) -> None:
    if not NAME.fullmatch(name) or name.lower() == "self":
        hint = "1 to 63 letters, digits, dots, dashes and underscores; not `self`"
        raise InvalidRequestError(f"{name!r} cannot name a node", hint=hint)
    for address in addresses:
        if not _is_address(address):
            hint = "give an IP address or a host name, without a port"
            raise InvalidRequestError(f"{address!r} is not an address", hint=hint)
    if node_id is not None and not NODE_ID.fullmatch(node_id):
        raise InvalidRequestError(
            f"{node_id!r} is not a node id", hint="ten characters, as in the node's node_id"
        )
    if not 0 < days <= issue.CA_DAYS:
        raise InvalidRequestError(f"{days} days is not possible", hint=f"1 to {issue.CA_DAYS} days")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        labels = text.split(".")
        # All digits would be an IP address with a typo.
        return not labels[-1].isdigit() and all(NAME.fullmatch(label) for label in labels)
    return "%" not in text
