"""What a fleet CA has issued and revoked: pure data, kept in ``index.json``."""

from collections.abc import Iterable
from typing import Self

import msgspec

from edgeorch.errors import ConfigError, ConflictError
from edgeorch.model import Kept

LOST = "unknown"
"""Name of an entry for revoked certificates of which only the serials are known."""


class Entry(Kept, frozen=True, kw_only=True):
    """One node that the CA knows. Times are seconds since the epoch."""

    id: str
    name: str
    addresses: tuple[str, ...] = ()
    serials: tuple[str, ...] = ()
    """Of every certificate issued to this id, in hex."""
    expires_at: float
    """Of the newest certificate."""
    ca: str = ""
    """Fingerprint of the CA of the certificate that the node is known to have; empty for unknown."""
    revoked_at: float | None = None


class Index(Kept, frozen=True, kw_only=True):
    """All entries, and the number of the revocation list that fits them."""

    fleet: str
    crl_number: int
    successor: str = ""
    """Fingerprint of the CA that is to replace the present one, while that change is under way."""
    nodes: tuple[Entry, ...] = ()

    def json(self) -> bytes:
        """The content of ``index.json``."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def holder(self, name: str) -> Entry | None:
        """The node that has the name now; names differ in more than case."""
        found = (e for e in self.nodes if e.revoked_at is None and e.name.lower() == name.lower())
        return next(found, None)

    def entry_for(self, name: str, node_id: str) -> Entry | None:
        """The entry of an id that is to get a certificate for this name.

        Raises:
            ConflictError: the id is revoked or has another name.
        """
        entry = next((entry for entry in self.nodes if entry.id == node_id), None)
        if entry and entry.revoked_at is not None:
            hint = "to take it in again, stop edgeorch there and remove node_id and pki below /etc/edgeorch"
            raise ConflictError(f"node {node_id} is revoked", hint=hint)
        if entry and entry.name != name:
            hint = "to rename a node, revoke it and issue a new id"
            raise ConflictError(f"node {node_id} is named {entry.name!r}", hint=hint)
        return entry

    def claim(self, name: str, node_id: str, now: float, *, replace: bool) -> tuple[Self, Entry | None]:
        """Give a name to an id.

        Args:
            name: for the next certificate.
            node_id: who gets it.
            now: when the node that has the name, if another, is revoked.
            replace: revoke that node.

        Returns:
            The index after that, and what it knew of the id.

        Raises:
            ConflictError: the name belongs to another node, or the id to another name or a revoked node.
        """
        known = self.entry_for(name, node_id)
        holder = self.holder(name)
        if holder is None or holder.id == node_id:
            return self, known
        if not replace:
            hint = (
                "if the machine was installed anew, revoke that node: --replace, or -e edgeorch_replace=true "
                f"for the playbooks (--node-id {holder.id} renews its certificate)"
            )
            raise ConflictError(f"the name {name!r} belongs to node {holder.id}", hint=hint)
        return self.revoke(holder.id, now), known

    def with_entry(self, entry: Entry) -> Self:
        """With an entry added, or in place of the one with the same id."""
        others = (other for other in self.nodes if other.id != entry.id)
        return msgspec.structs.replace(self, nodes=(*others, entry))

    def revoke(self, node_id: str, now: float) -> Self:
        """With a node revoked, which makes a new list necessary."""
        nodes = tuple(
            msgspec.structs.replace(entry, revoked_at=now) if entry.id == node_id else entry
            for entry in self.nodes
        )
        return msgspec.structs.replace(self, nodes=nodes, crl_number=self.crl_number + 1)

    def with_list(self, number: int, serials: Iterable[int], now: float) -> Self:
        """With a revocation list that was signed here and that this index, an old copy, does not know.

        The next list gets a higher number and names all that this one does.

        Args:
            number: of the list; one that is not newer changes nothing.
            serials: of revoked certificates.
            now: seconds since the epoch.
        """
        if number <= self.crl_number:
            return self
        listed = {f"{serial:x}" for serial in serials}
        nodes = tuple(
            msgspec.structs.replace(entry, revoked_at=now)
            if entry.revoked_at is None and listed.intersection(entry.serials)
            else entry
            for entry in self.nodes
        )
        strange = tuple(sorted(listed.difference(*(entry.serials for entry in nodes))))
        if strange:
            lost = Entry(id=f"list-{number}", name=LOST, serials=strange, expires_at=now, revoked_at=now)
            nodes += (lost,)
        return msgspec.structs.replace(self, nodes=nodes, crl_number=number + 1)

    def revoked(self) -> list[tuple[int, float]]:
        """(serial, when) of every revoked certificate."""
        return [
            (int(serial, 16), entry.revoked_at)
            for entry in self.nodes
            if entry.revoked_at is not None
            for serial in entry.serials
        ]


def read_index(data: bytes, source: str) -> Index:
    """The index in a file's content.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        return msgspec.json.decode(data, type=Index)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{source}: {error}", hint="restore it from a backup") from None
