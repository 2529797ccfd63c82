"""A new CA for a fleet whose old one is lost with its controller: the nodes themselves know whom they trust.

It leaves the folder as ``Rotation.begin`` does, so the rest is an ordinary change of the CA. Until
``reissue`` nothing can be signed; nodes keep what they have.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.x509.oid import NameOID

from edgeorch import files
from edgeorch.errors import ConfigError, ConflictError, IdentityError
from edgeorch.identity import issue, pem
from edgeorch.identity.ca_files import KEY, CaFiles
from edgeorch.identity.index import Index
from edgeorch.identity.names import fingerprint
from edgeorch.identity.revocation import Revocations, read_revocations


def recover(
    folder: Path, fleet: str, nodes: Sequence[str], *, passphrase: bytes | None, wall: Callable[[], float]
) -> CaFiles:
    """Make a folder for a new CA out of what the nodes have.

    Args:
        folder: made where it is missing; holds no CA.
        fleet: the fleet's name.
        nodes: of each node that answers its ``ca.pem`` and ``crl.pem`` in one text.
        passphrase: encrypts the new key.
        wall: seconds since the epoch.

    Raises:
        ConfigError: no node has a CA, or it is another fleet's.
        ConflictError: the folder holds a CA.
        StorageError: the folder cannot be written.
    """
    cas: dict[str, x509.Certificate] = {}
    for text in nodes:
        trusted = pem.read_certificates(text.encode(), "ca.pem of a node")
        cas.update({fingerprint(one): one for one in trusted})
    if not cas:
        raise ConfigError(
            "no node has a CA", hint="there is nothing to recover: deploy.yml makes a new fleet"
        )
    for one in cas.values():
        if _fleet_of(one) != fleet:
            hint = "say its name in edgeorch_fleet"
            raise ConfigError(f"the nodes are of the fleet {_fleet_of(one)}, not of {fleet}", hint=hint)
    newest = max((_list_in(text, tuple(cas.values())) for text in nodes), key=lambda one: one.number)
    files.make_folder(folder)
    with files.locked(folder):
        for name in (KEY, "index.json"):
            if (folder / name).exists():
                hint = "nothing is lost: use it, or move the folder away first"
                raise ConflictError(f"{folder} holds a fleet's CA ({name})", hint=hint)
        key, now = issue.new_key(), wall()
        successor = issue.ca_certificate(key, fleet, now)
        index = Index(fleet=fleet, crl_number=0).with_list(newest.number, newest.serials, now)
        ca = CaFiles(folder, passphrase, wall)
        ca.write_bundle([*cas.values(), successor])
        if newest.pem:
            files.write(folder / "crl.pem", newest.pem, 0o644)
        ca.write_key(KEY, key)
        ca.write_index(msgspec.structs.replace(index, successor=fingerprint(successor)))
    return ca


def _fleet_of(ca: x509.Certificate) -> str:
    names = ca.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value).removeprefix(issue.CA_NAME) if names else ""


def _list_in(text: str, cas: Sequence[x509.Certificate]) -> Revocations:
    try:
        return read_revocations(text.encode(), cas, "crl.pem of a node")
    except IdentityError:
        return Revocations()
