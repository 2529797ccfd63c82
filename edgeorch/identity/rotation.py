"""Changing the fleet's CA without an outage: trust both, sign with the new one, drop the old one.

The trust bundle ca.pem says how far it is, so each step is one atomic change of one file: [old], [old, new]
after ``begin``, [new, old] after ``reissue`` (the first one signs), [new] after ``finish``. Between two steps
every node must have been given the bundle and its certificate. The revocation list is always that of the CA
that signs, holds the serials of both, and is numbered on; nodes take it from any CA that they trust.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import msgspec

from edgeorch import files
from edgeorch.errors import ConflictError
from edgeorch.identity import issue
from edgeorch.identity.ca_files import KEY, NEXT_KEY, CaFiles
from edgeorch.identity.index import Index
from edgeorch.identity.names import fingerprint

Phase: TypeAlias = Literal["", "begin", "reissue"]
"""The last step that was taken; empty for none."""


class Rotation:
    """The steps. Each may be repeated: a step that has been taken changes nothing."""

    def __init__(self, ca: CaFiles) -> None:
        self._ca = ca

    @property
    def phase(self) -> Phase:
        """How far it is."""
        successor, trusted = self._ca.index().successor, [fingerprint(ca) for ca in self._ca.bundle]
        if not successor or len(trusted) == 1:
            return ""
        return "reissue" if trusted[0] == successor else "begin"

    def pending(self, names: Iterable[str] = ()) -> list[str]:
        """Names of the nodes, not revoked, that are not known to have a certificate of the new CA.

        Args:
            names: of further nodes, which the CA perhaps does not know.
        """
        index = self._ca.index()
        known = {entry.name: entry.ca == index.successor for entry in index.nodes if entry.revoked_at is None}
        return sorted({*known, *names} - {name for name, done in known.items() if done})

    def begin(self) -> bool:
        """Make the new CA, to be trusted beside the old one, which goes on signing.

        Returns:
            Whether anything was changed.

        Raises:
            ConfigError: the present CA's key cannot be read: a wrong passphrase must not protect the new one.
            StorageError: the folder cannot be written.
        """
        with self._locked() as index:
            if self.phase:
                return False
            signer = self._ca.signer()
            key = issue.new_key()
            successor = issue.ca_certificate(key, index.fleet, self._ca.wall())
            # Not in ca.pem yet: until then a crash leaves only a key that the next try replaces.
            self._ca.write_key(NEXT_KEY, key)
            old = fingerprint(signer.certificate)
            nodes = tuple(
                entry if entry.ca else msgspec.structs.replace(entry, ca=old) for entry in index.nodes
            )
            changed = msgspec.structs.replace(index, successor=fingerprint(successor), nodes=nodes)
            self._ca.keep(changed, signer)
            bundle = [signer.certificate, successor]
            if self._ca.wall() > signer.certificate.not_valid_after_utc.timestamp():
                bundle.reverse()  # nobody believes what the old one signs: nothing is to be kept up
            self._ca.write_bundle(bundle)
            return True

    def reissue(self) -> bool:
        """Sign with the new CA from now on.

        Returns:
            Whether anything was changed.

        Raises:
            ConflictError: no change has begun.
            ConfigError: the new CA's key cannot be read.
            StorageError: the folder cannot be written.
        """
        with self._locked() as index:
            phase = self.phase
            if not phase:
                raise ConflictError(
                    "no new CA has been made", hint="`edgeorch keys rotate-ca begin` makes it"
                )
            if phase == "begin":
                *old, new = self._ca.bundle
                self._ca.write_bundle([new, *old])
            self._ca.keep(index, self._ca.signer())
            return phase == "begin"

    def finish(self, names: Iterable[str] = ()) -> None:
        """Trust the old CA no longer.

        Args:
            names: of nodes that must have a certificate of the new one besides those that the CA knows.

        Raises:
            ConflictError: a node has no certificate of the new CA, or nothing was signed with it yet.
            StorageError: the folder cannot be written.
        """
        with self._locked() as index:
            if self.phase != "reissue":
                hint = "the steps are `edgeorch keys rotate-ca begin`, `reissue`, `finish`"
                raise ConflictError("the new CA does not sign yet", hint=hint)
            if pending := self.pending(names):
                raise ConflictError(
                    f"the old CA stays: no certificate of the new one yet on {', '.join(pending)}",
                    hint="run the same again when they are up, or revoke those that are gone",
                )
            self._ca.write_bundle(self._ca.bundle[:1])
            self._tidy(index)

    @contextmanager
    def _locked(self) -> Iterator[Index]:
        with files.locked(self._ca.folder):
            yield self._tidy(self._ca.index())

    def _tidy(self, index: Index) -> Index:
        """Put the new key in the old one's place once only the new CA is left, also after a crash."""
        trusted = self._ca.bundle
        if len(trusted) > 1 or index.successor != fingerprint(trusted[0]):
            return index
        fresh = self._ca.folder / NEXT_KEY
        if text := files.read_optional(fresh, "the new CA's key"):
            files.write(self._ca.folder / KEY, text, 0o600)
            files.remove(fresh)
        index = msgspec.structs.replace(index, successor="")
        self._ca.write_index(index)
        return index
