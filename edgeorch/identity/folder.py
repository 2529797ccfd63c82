"""The node's side of getting keys: make them here, and put what the controller signed into force.

All of it may be killed at any point: what is then on the disk is a node that starts, and a next run goes on.
"""

import contextlib
import grp
import os
import random
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from edgeorch import files
from edgeorch.errors import ConfigError, IdentityError
from edgeorch.identity import issue, own_key, pem
from edgeorch.identity.names import NODE_ID, read_names
from edgeorch.identity.peer import issued_by
from edgeorch.identity.revocation import Revocations, read_revocations
from edgeorch.model import new_node_id

GROUP = "edgeorch"
"""Of the service's user, who reads these files and writes none of them."""
KEY_MODE = 0o640
FOLDER_MODE = 0o750


@dataclass(frozen=True)
class Requested:
    """What the controller needs to sign for this node, in PEM, with the present certificate and list."""

    node_id: str
    public_key: str
    certificate: str
    crl: str
    changed: bool


class NodeFolder:
    """``/etc/edgeorch``, for root. Run by somebody else it writes the same files for that user."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pki = folder / "pki"
        self._changed = False

    def request(self, *, rotate: bool = False) -> Requested:
        """Make the node's id and key where they are missing.

        Args:
            rotate: make a next key beside the one in force, or take the one that an earlier run left.

        Raises:
            ConfigError: a file is there and cannot be used.
            StorageError: the folder cannot be written.
        """
        for folder in (self._folder, self._pki):
            files.make_folder(folder, FOLDER_MODE)
            self._give(folder, FOLDER_MODE)
        with files.locked(self._pki):
            certificate = self._certificate()
            self._finish_switch(certificate)
            node_id = self._node_id(certificate)
            key = self._pki / own_key.KEY
            self._make_key(key)
            if rotate and certificate is not None:
                key = self._pki / own_key.NEXT_KEY
                self._make_key(key)
            public = own_key.public_key(key)
        text = files.read_optional(self._pki / "node.pem", "the node's certificate") or b""
        return Requested(
            node_id=node_id,
            public_key=pem.write_public(public).decode(),
            certificate=text.decode("ascii", "replace") if certificate is not None else "",
            crl=self._list(),
            changed=self._changed,
        )

    def look(self, *, rotate: bool = False) -> Requested:
        """What ``request`` would answer, with nothing made or mended; empty for what is not there yet.

        Raises:
            ConfigError: a file is there and cannot be used.
        """
        certificate = self._certificate()
        kept = files.read_optional(self._folder / "node_id", "the node's id") or b""
        key = self._pki / own_key.KEY
        public = pem.write_public(own_key.public_key(key)).decode() if key.exists() else ""
        return Requested(
            node_id=kept.decode("ascii", "replace").strip(),
            public_key=public,
            certificate=pem.write_certificate(certificate).decode() if certificate is not None else "",
            crl=self._list(),
            changed=rotate or not kept or not public,
        )

    def install(self, certificate: bytes, ca: bytes, crl: bytes) -> bool:
        """Put what the controller sent into force; the node takes it at its next reload.

        Args:
            certificate: for the key in force or the next one.
            ca: all CAs to trust.
            crl: the revocation list, or nothing.

        Returns:
            Whether anything was changed.

        Raises:
            ConfigError: the parts do not fit each other or this node; nothing was written.
            IdentityError: the list is not of these CAs; nothing was written.
            StorageError: the folder cannot be written.
        """
        cas = pem.read_certificates(ca, "ca")
        fresh = pem.read_certificates(certificate, "certificate")[0]
        revocations = read_revocations(crl, cas, "crl") if crl else Revocations()
        with files.locked(self._pki):
            key = self._check(fresh, cas, revocations)
            # First trust the old and the new, so that every mixture of the files below is a node that starts.
            self._write("ca.pem", self._with_old_cas(ca, cas))
            self._write_list(revocations, cas)
            self._write("node.pem", certificate)
            if key.name == own_key.NEXT_KEY:
                self._finish_switch(fresh)
            self._give(self._pki / own_key.KEY, KEY_MODE)
            self._write("ca.pem", ca)
        return self._changed

    # What is there

    def _certificate(self) -> x509.Certificate | None:
        """The present certificate, where it can be read: a damaged one is replaced by the next."""
        text = files.read_optional(self._pki / "node.pem", "the node's certificate")
        try:
            return pem.read_certificates(text, "")[0] if text else None
        except ConfigError:
            return None

    def _list(self) -> str:
        text = files.read_optional(self._pki / "crl.pem", "the revocation list") or b""
        return text.decode("ascii", "replace")

    def _node_id(self, certificate: x509.Certificate | None) -> str:
        path = self._folder / "node_id"
        kept = files.read_optional(path, "the node's id")
        if kept is not None:
            node_id = kept.decode("ascii", "replace").strip()
            if not NODE_ID.fullmatch(node_id):
                hint = "remove it: the node then makes a new one"
                raise ConfigError(f"{path}: {node_id[:40]!r} is not a node id", hint=hint)
        else:
            node_id = new_node_id(random.SystemRandom())
            with contextlib.suppress(IdentityError):
                node_id = read_names(certificate).node_id if certificate is not None else node_id
            files.write(path, f"{node_id}\n".encode(), 0o644)
            self._changed = True
        self._give(path, 0o644)
        return node_id

    def _check(
        self, fresh: x509.Certificate, cas: tuple[x509.Certificate, ...], revocations: Revocations
    ) -> Path:
        """Whether these files make a node that starts; returns which key they are for."""
        if not any(issued_by(fresh, ca) for ca in cas):
            raise ConfigError("the certificate is not from one of these CAs", hint="sign and send both again")
        names, here = read_names(fresh), self._node_id(fresh)
        if names.node_id != here:
            raise ConfigError(f"the certificate is for node {names.node_id}, this is {here}")
        if names.serial in revocations.serials:
            raise ConfigError("the certificate is revoked", hint="sign a new one")
        for name in (own_key.NEXT_KEY, own_key.KEY):
            path = self._pki / name
            if path.exists() and own_key.public_key(path) == fresh.public_key():
                return path
        raise ConfigError("the certificate is for another key", hint="request, sign and install it again")

    # What is written

    def _finish_switch(self, certificate: x509.Certificate | None) -> None:
        """Where the certificate is for the next key, that one is in force: give it its name."""
        key, fresh = self._pki / own_key.KEY, self._pki / own_key.NEXT_KEY
        if certificate is None or not fresh.exists():
            return
        if own_key.public_key(fresh) == certificate.public_key():
            files.move(fresh, key)
            self._changed = True

    def _make_key(self, path: Path) -> None:
        if not path.exists():
            files.write(path, pem.write_private(issue.new_key()), KEY_MODE)
            self._changed = True
        self._give(path, KEY_MODE)

    def _with_old_cas(self, ca: bytes, cas: tuple[x509.Certificate, ...]) -> bytes:
        path = self._pki / "ca.pem"
        text = files.read_optional(path, "the fleet's CA certificates") or b""
        try:
            old = pem.read_certificates(text, str(path))
        except ConfigError:
            return ca
        return ca + b"".join(pem.write_certificate(other) for other in old if other not in cas)

    def _write_list(self, revocations: Revocations, cas: tuple[x509.Certificate, ...]) -> None:
        """A newer list that a peer's administrator left here stays; one of a CA that goes does not."""
        text = files.read_optional(self._pki / "crl.pem", "the revocation list")
        with contextlib.suppress(IdentityError):
            if text and read_revocations(text, cas, "crl.pem").number >= revocations.number:
                return
        if revocations.pem:
            self._write("crl.pem", revocations.pem)
        elif text is not None:
            files.remove(self._pki / "crl.pem")
            self._changed = True

    def _write(self, name: str, data: bytes) -> None:
        path = self._pki / name
        if files.read_optional(path, name) != data:
            files.write(path, data, 0o644)
            self._changed = True
        self._give(path, 0o644)

    def _give(self, path: Path, mode: int) -> None:
        """Let the service read it and root alone change it; another user just gets the mode."""
        group = _group()
        if files.give(path, mode, None if group is None else (0, group)):
            self._changed = True


def _group() -> int | None:
    """The service's group, where this is root and the group exists."""
    if os.geteuid() != 0:
        return None
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None
