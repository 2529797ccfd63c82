"""The folder of a fleet CA on the controller: its certificates and keys, the index, the revocation list.

``ca.pem`` is what nodes and clients trust. Its first certificate signs; a second one is there while the CA is
being changed (``rotation``). Which key belongs to it is told by the keys themselves, so no crash between two
files can part them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from edgeorch import files
from edgeorch.errors import ConfigError, IdentityError
from edgeorch.identity import issue, pem
from edgeorch.identity.index import Index, read_index
from edgeorch.identity.names import fingerprint
from edgeorch.identity.peer import NEW_CA, day_of
from edgeorch.identity.revocation import Revocations, read_revocations

KEY = "ca.key"
NEXT_KEY = "ca.next.key"
"""The successor's key, until its change is finished."""


@dataclass(frozen=True)
class Signer:
    """The CA that signs now."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def check_in_date(ca: x509.Certificate, now: float) -> None:
    """Raises ``ConfigError`` when the CA's time is over: no node would believe what it signs."""
    ends = ca.not_valid_after_utc.timestamp()
    if now > ends:
        raise ConfigError(f"the fleet's CA expired at {day_of(ends)}", hint=NEW_CA)


class CaFiles:
    """Reads and writes the folder; who changes it holds ``files.locked(folder)``.

    Args:
        folder: holds ca.pem, ca.key, crl.pem and index.json.
        passphrase: of the CA's keys; None where they have none.
        wall: seconds since the epoch.
    """

    def __init__(self, folder: Path, passphrase: bytes | None, wall: Callable[[], float]) -> None:
        self.folder = folder
        self.passphrase = passphrase
        self.wall = wall

    @property
    def bundle_pem(self) -> bytes:
        """What nodes and clients are to trust.

        Raises:
            ConfigError: it cannot be read.
        """
        return files.read(self.folder / "ca.pem", "the CA certificate")

    @property
    def bundle(self) -> tuple[x509.Certificate, ...]:
        """The trusted CAs; the first one signs.

        Raises:
            ConfigError: it cannot be read.
        """
        return pem.read_certificates(self.bundle_pem, str(self.folder / "ca.pem"))

    @property
    def crl_pem(self) -> bytes:
        """The revocation list as it is; empty where it is missing."""
        return files.read_optional(self.folder / "crl.pem", "the revocation list") or b""

    def write_bundle(self, cas: Sequence[x509.Certificate]) -> None:
        """Replace ca.pem."""
        text = b"".join(ca.public_bytes(Encoding.PEM) for ca in cas)
        files.write(self.folder / "ca.pem", text, 0o644)

    def write_key(self, name: str, key: ec.EllipticCurvePrivateKey) -> None:
        """Write a CA's key, for the owner of the folder only."""
        files.write(self.folder / name, pem.write_private(key, self.passphrase), 0o600)

    def index(self) -> Index:
        """What was issued and revoked.

        Raises:
            ConfigError: it cannot be read.
        """
        path = self.folder / "index.json"
        return read_index(files.read(path, "the list of issued certificates"), str(path))

    def write_index(self, index: Index) -> None:
        """Replace index.json."""
        files.write(self.folder / "index.json", index.json(), 0o600)

    def signer(self) -> Signer:
        """The CA that signs now, with its key.

        Raises:
            ConfigError: its key is missing, or the passphrase is missing or wrong.
        """
        certificate = self.bundle[0]
        path = self.folder / KEY
        texts = [(path, files.read(path, "the CA's key"))]
        successor = self.folder / NEXT_KEY
        if text := files.read_optional(successor, "the next CA's key"):
            texts.append((successor, text))
        for source, text in texts:
            key = pem.read_private(text, self.passphrase, str(source))
            if isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key():
                return Signer(certificate, key)
        raise ConfigError(f"{path} is not the key of ca.pem", hint="restore both from the same backup")

    def keep(self, index: Index, signer: Signer) -> bytes:
        """Write the index, and then the revocation list where it is behind (also after a crash between them).

        A list of another signer, or one that ends soon, is made anew under the next number.

        Returns:
            The list, in PEM.
        """
        kept = self._kept_list()
        good = kept is not None and not self._ends_soon(kept)
        if kept and good and kept.number == index.crl_number and kept.signed_by(signer.certificate):
            self.write_index(index)
            return kept.pem
        if kept and kept.number >= index.crl_number:
            index = msgspec.structs.replace(index, crl_number=kept.number + 1)
        self.write_index(index)
        crl = issue.revocation_list(
            signer.certificate, signer.key, index.revoked(), number=index.crl_number, wall=self.wall()
        )
        fresh = crl.public_bytes(Encoding.PEM)
        files.write(self.folder / "crl.pem", fresh, 0o644)
        return fresh

    def signer_is_lost(self) -> bool:
        """Whether nothing can be signed before ``reissue``, because the old CA's key is lost (``recovery``).

        Raises:
            ConfigError: the folder cannot be read.
        """
        successor, trusted = self.index().successor, [fingerprint(ca) for ca in self.bundle]
        return len(trusted) > 1 and successor == trusted[-1] and not (self.folder / NEXT_KEY).exists()

    def list_is_due(self) -> bool:
        """Whether there is no revocation list, or one that ends soon."""
        kept = self._kept_list()
        return kept is None or self._ends_soon(kept)

    def _ends_soon(self, kept: Revocations) -> bool:
        return kept.expired(self.wall() + issue.WARN_DAYS * issue.DAY)

    def _kept_list(self) -> Revocations | None:
        """The list as it is; None where there is none that can be read."""
        text = self.crl_pem
        try:
            return read_revocations(text, self.bundle, "crl.pem") if text else None
        except IdentityError:
            return None
