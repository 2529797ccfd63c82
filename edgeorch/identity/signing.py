"""Certificates for nodes that have made their keys themselves: one of them, or a whole play's at once.

The classes here are the JSON that ``edgeorch keys sign`` reads and writes; times in it are RFC 3339.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from edgeorch.errors import ConfigError, ConflictError, InvalidRequestError
from edgeorch.identity import issue, pem
from edgeorch.identity.ca_files import CaFiles, Signer
from edgeorch.identity.index import Entry, Index
from edgeorch.identity.names import NAME, NODE_ID, fingerprint, node_uri
from edgeorch.identity.peer import issued_by


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node that wants a certificate, with what it has now."""

    name: str
    node_id: str
    public_key: str
    certificate: str = ""
    addresses: tuple[str, ...] = ()
    replace: bool = False
    """Revoke the node that has the name now."""
    renew: bool = False
    """Sign also where the present certificate is good."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request: a certificate, or an error in one sentence."""

    certificate: str = ""
    changed: bool = False
    expires_at: str = ""
    error: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What every node gets, and what each one gets, by name."""

    ca: str
    crl: str
    nodes: dict[str, Outcome]


@dataclass(frozen=True)
class Wish:
    """What a certificate is to say.

    Raises:
        InvalidRequestError: a part of it cannot be used.
    """

    name: str
    node_id: str
    key: issue.PublicKey
    addresses: tuple[str, ...]
    replace: bool
    days: float = issue.NODE_DAYS

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name.lower() == "self":
            hint = "1 to 63 letters, digits, dots, dashes and underscores; not `self`"
            raise InvalidRequestError(f"{self.name!r} cannot name a node", hint=hint)
        for address in self.addresses:
            if not _is_address(address):
                hint = "give an IP address or a host name, without a port"
                raise InvalidRequestError(f"{address!r} is not an address", hint=hint)
        if not NODE_ID.fullmatch(self.node_id):
            hint = "ten characters, as in the node's node_id"
            raise InvalidRequestError(f"{self.node_id!r} is not a node id", hint=hint)
        if not 0 < self.days <= issue.CA_DAYS:
            hint = f"1 to {issue.CA_DAYS} days"
            raise InvalidRequestError(f"{self.days} days is not possible", hint=hint)


def issue_one(index: Index, signer: Signer, wish: Wish, now: float) -> tuple[Index, Entry, x509.Certificate]:
    """Issue a certificate.

    Raises:
        ConflictError: the name belongs to another node, or the id to another name or a revoked node.
    """
    index, known = index.claim(wish.name, wish.node_id, now, replace=wish.replace)
    certificate = issue.node_certificate(
        signer.certificate,
        signer.key,
        wish.key,
        fleet=index.fleet,
        node_id=wish.node_id,
        name=wish.name,
        addresses=wish.addresses,
        wall=now,
        days=wish.days,
    )
    entry = _entry(known, wish, certificate, signer.certificate)
    return index.with_entry(entry), entry, certificate


def sign(ca: CaFiles, requests: Sequence[Request]) -> Answer:
    """Answer a whole play. The CA's key is opened only where something is to be signed.

    A present certificate is kept while it has the node's key and names, is of the CA that signs now, and ends
    in more than ``WARN_DAYS`` or with the CA. One that is not in the index, because that was restored from a
    backup, is taken up again, so that it can be revoked. What is wrong with one request is said in its
    outcome and does not hold up the others. Hold the folder's lock.

    Raises:
        InvalidRequestError: two requests have one name.
        ConfigError: the CA cannot be used: expired, or no or a wrong passphrase.
        StorageError: the folder cannot be written.
    """
    now, bundle, before = ca.wall(), ca.bundle, ca.index()
    nodes: dict[str, Outcome] = {}
    wishes: list[Wish] = []
    index = before
    for request, error in _without_clones(requests):
        try:
            wish = _wish(request, error)
            present = None if request.renew else _present(request, wish, index, bundle[0], now)
            if present is None:
                index.claim(wish.name, wish.node_id, now, replace=wish.replace)
                wishes.append(wish)
                continue
            index, nodes[wish.name] = _kept(index, wish, present, bundle[0])
        except (InvalidRequestError, ConflictError) as failure:
            nodes[request.name] = Outcome(error=str(failure))
    crl = ca.crl_pem
    if wishes or not crl:
        signer = ca.signer()
        signer.check_in_date(now)
        for wish in wishes:
            try:
                index, _, certificate = issue_one(index, signer, wish, now)
            except ConflictError as failure:
                nodes[wish.name] = Outcome(error=str(failure))
            else:
                nodes[wish.name] = _outcome(certificate, changed=True)
        crl = ca.keep(index, signer)
    elif index != before:
        ca.write_index(index)
    return Answer(ca=ca.bundle_pem.decode(), crl=crl.decode(), nodes=nodes)


def rfc3339(seconds: float) -> str:
    """A time for programs, in UTC."""
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def _without_clones(requests: Sequence[Request]) -> Iterable[tuple[Request, str]]:
    """Every request, with a sentence where an earlier one has its id or key: its disk was copied."""
    names = [request.name.lower() for request in requests]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidRequestError(f"{twice!r} is asked for twice", hint="names must differ in the inventory")
    ids: dict[str, str] = {}
    keys: dict[str, str] = {}
    for request in requests:
        other = ids.setdefault(request.node_id, request.name)
        same_key = keys.setdefault(request.public_key, request.name)
        error = ""
        if other != request.name:
            error = f"{request.name} has the node id of {other}: one is a copy of the other"
        elif same_key != request.name:
            error = f"{request.name} has the key of {same_key}: one is a copy of the other"
        yield request, error


def _wish(request: Request, error: str) -> Wish:
    if error:
        raise InvalidRequestError(error, hint="remove node_id and pki below /etc/edgeorch on one of them")
    return Wish(
        name=request.name,
        node_id=request.node_id,
        key=pem.read_public(request.public_key.encode()),
        addresses=request.addresses,
        replace=request.replace,
    )


def _present(
    request: Request, wish: Wish, index: Index, signer: x509.Certificate, now: float
) -> x509.Certificate | None:
    """The certificate that the node has, where it is all that could be wished for."""
    if not request.certificate:
        return None
    try:
        certificate = pem.read_certificates(request.certificate.encode(), "certificate")[0]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ConfigError, x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None
    wanted = issue.alternative_names(node_uri(index.fleet, wish.node_id), wish.name, wish.addresses)
    ends, last = certificate.not_valid_after_utc, signer.not_valid_after_utc
    holder = index.holder(wish.name)
    good = (
        issued_by(certificate, signer)
        and certificate.public_key() == wish.key
        and set(names) == set(wanted)
        and certificate.subject == issue.subject_of(wish.name)
        and (
            ends.timestamp() > now + issue.WARN_DAYS * issue.DAY or (now < ends.timestamp() and ends >= last)
        )
        and (holder is None or holder.id == wish.node_id)
    )
    return certificate if good else None


def _kept(
    index: Index, wish: Wish, certificate: x509.Certificate, signer: x509.Certificate
) -> tuple[Index, Outcome]:
    known = index.entry_for(wish.name, wish.node_id)
    if known is None or f"{certificate.serial_number:x}" not in known.serials:
        index = index.with_entry(_entry(known, wish, certificate, signer))
    return index, _outcome(certificate, changed=False)


def _entry(known: Entry | None, wish: Wish, certificate: x509.Certificate, signer: x509.Certificate) -> Entry:
    return Entry(
        id=wish.node_id,
        name=wish.name,
        addresses=wish.addresses,
        serials=(*(known.serials if known else ()), f"{certificate.serial_number:x}"),
        expires_at=certificate.not_valid_after_utc.timestamp(),
        ca=fingerprint(signer),
    )


def _outcome(certificate: x509.Certificate, *, changed: bool) -> Outcome:
    return Outcome(
        certificate=certificate.public_bytes(Encoding.PEM).decode(),
        changed=changed,
        expires_at=rfc3339(certificate.not_valid_after_utc.timestamp()),
    )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        labels = text.split(".")
        # All digits would be an IP address with a typo.
        return not labels[-1].isdigit() and all(NAME.fullmatch(label) for label in labels)
    return "%" not in text
