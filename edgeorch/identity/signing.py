"""Certificates for nodes that have made their keys themselves: one of them, or a whole play's at once.

The classes here are the JSON that ``edgeorch keys sign`` reads and writes; times in it are RFC 3339.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from edgeorch.errors import ConfigError, ConflictError, IdentityError, InvalidRequestError
from edgeorch.identity import issue, pem
from edgeorch.identity.ca_files import CaFiles, Signer, check_in_date
from edgeorch.identity.index import Entry, Index
from edgeorch.identity.names import NAME, NODE_ID, fingerprint, node_uri, read_names
from edgeorch.identity.peer import issued_by
from edgeorch.identity.revocation import read_revocations

_ANEW = "on one of them stop edgeorch and remove node_id and pki below /etc/edgeorch"


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
    crl: str = ""
    """The revocation list on the node; a newer one than ours tells that our folder is an old copy."""


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
    warnings: tuple[str, ...] = ()
    """What ends within ``WARN_DAYS``, also of nodes that did not ask; a sentence each."""


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


def issue_one(
    index: Index, signer: Signer, wish: Wish, now: float, *, delivered: bool = True
) -> tuple[Index, Entry, x509.Certificate]:
    """Issue a certificate.

    Args:
        index: what was issued before.
        signer: the CA.
        wish: what to say.
        now: seconds since the epoch.
        delivered: whether the node can be taken to have it; else it shows it with its next request.

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
    has = fingerprint(signer.certificate) if delivered else known.ca if known else ""
    entry = _entry(known, wish, certificate, has)
    return index.with_entry(entry), entry, certificate


def sign(ca: CaFiles, requests: Sequence[Request], *, check: bool = False) -> Answer:
    """Answer a whole play. The CA's key is opened only where something is to be signed.

    A present certificate is kept while it has the node's key and names, is of the CA that signs now, and ends
    in more than ``WARN_DAYS`` or with the CA. One that is not in the index, because that was restored from a
    backup, is taken up again, so that it can be revoked. What is wrong with one request is said in its
    outcome and does not hold up the others. A list that ends soon, or that is older than one on a node, is
    signed afresh. Hold the folder's lock.

    Args:
        ca: the fleet's CA.
        requests: of the nodes.
        check: sign and write nothing, only say what would be signed.

    Raises:
        InvalidRequestError: two requests have one name.
        ConfigError: the CA cannot be used: expired, or no or a wrong passphrase.
        StorageError: the folder cannot be written.
    """
    now, bundle, before = ca.wall(), ca.bundle, ca.index()
    lost = ca.signer_is_lost()
    if not lost:
        check_in_date(bundle[0], now)
    index, nodes, wishes = _sorted(requests, before, bundle, now, lost=lost)
    index = _with_lists(index, requests, bundle, now)
    if check:
        nodes |= {wish.name: Outcome(changed=True) for wish in wishes}
        return Answer(ca="", crl="", nodes=nodes, warnings=_warnings(index, bundle[0], now))
    crl = ca.crl_pem
    if not lost and (wishes or index.crl_number != before.crl_number or ca.list_is_due()):
        signer = ca.signer()
        for wish in wishes:
            try:
                index, _, certificate = issue_one(index, signer, wish, now, delivered=False)
            except ConflictError as failure:
                nodes[wish.name] = Outcome(error=str(failure))
            else:
                nodes[wish.name] = _outcome(certificate, changed=True)
        crl = ca.keep(index, signer)
    elif index != before:
        ca.write_index(index)
    warnings = _warnings(index, bundle[0], now)
    return Answer(ca=ca.bundle_pem.decode(), crl=crl.decode(), nodes=nodes, warnings=warnings)


def _sorted(
    requests: Sequence[Request], index: Index, bundle: Sequence[x509.Certificate], now: float, *, lost: bool
) -> tuple[Index, dict[str, Outcome], list[Wish]]:
    """Those that can be answered at once, because they are wrong or have what they wish for, and the others.

    Args:
        requests: of a whole play.
        index: what was issued before.
        bundle: the CAs, the one that signs first.
        now: seconds since the epoch.
        lost: nothing can be signed now, so what a node has must do.
    """
    nodes: dict[str, Outcome] = {}
    wishes: list[Wish] = []
    for request, error in _without_clones(requests):
        try:
            wish = _wish(request, error)
            _refuse_foreign(request, index, bundle)
            present = None if request.renew else _present(request, wish, index, bundle[0], now)
            if present is None and lost:
                present = _as_it_is(request, wish, bundle)
            if present is None:
                index.claim(wish.name, wish.node_id, now, replace=wish.replace)
                wishes.append(wish)
                continue
            index, nodes[wish.name] = _kept(index, wish, present, bundle)
        except (InvalidRequestError, ConflictError) as failure:
            nodes[request.name] = Outcome(error=str(failure))
    return index, nodes, wishes


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
        raise InvalidRequestError(error, hint=_ANEW)
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


def _as_it_is(request: Request, wish: Wish, bundle: Sequence[x509.Certificate]) -> x509.Certificate:
    """The present certificate, while nothing can be signed.

    Raises:
        ConflictError: the node has none that it could go on with.
    """
    with suppress(ConfigError):
        certificate = pem.read_certificates(request.certificate.encode(), "certificate")[0]
        if certificate.public_key() == wish.key and any(issued_by(certificate, ca) for ca in bundle):
            return certificate
    hint = "give the other nodes a new one first: rotate-keys.yml with -e rotate_ca=true, then deploy.yml"
    raise ConflictError("the CA that could sign for it is lost", hint=hint)


def _kept(
    index: Index, wish: Wish, certificate: x509.Certificate, bundle: Sequence[x509.Certificate]
) -> tuple[Index, Outcome]:
    known = index.entry_for(wish.name, wish.node_id)
    ca = next(fingerprint(ca) for ca in bundle if issued_by(certificate, ca))
    if known is None or known.ca != ca or _serial(certificate) not in known.serials:
        index = index.with_entry(_entry(known, wish, certificate, ca))
    return index, _outcome(certificate, changed=False)


def _entry(known: Entry | None, wish: Wish, certificate: x509.Certificate, ca: str) -> Entry:
    return Entry(
        id=wish.node_id,
        name=wish.name,
        addresses=wish.addresses,
        serials=tuple(dict.fromkeys((*(known.serials if known else ()), _serial(certificate)))),
        expires_at=certificate.not_valid_after_utc.timestamp(),
        ca=ca,
    )


def _serial(certificate: x509.Certificate) -> str:
    return f"{certificate.serial_number:x}"


def _refuse_foreign(request: Request, index: Index, bundle: Sequence[x509.Certificate]) -> None:
    """A node of another CA is not taken over by accident.

    Raises:
        ConflictError: it is one, and the request does not say ``replace``.
    """
    if not request.certificate or request.replace:
        return
    try:
        certificate = pem.read_certificates(request.certificate.encode(), "certificate")[0]
        fleet = read_names(certificate).fleet
    except (ConfigError, IdentityError):
        return  # damaged: there is nothing to take away
    ours = any(_serial(certificate) in entry.serials for entry in index.nodes)
    if ours or any(issued_by(certificate, ca) for ca in bundle):
        return
    if fleet != index.fleet:
        raise ConflictError(
            f"it is a node of the fleet {fleet}, not of {index.fleet}",
            hint="take it out of that fleet with remove.yml, or say the right one in edgeorch_fleet",
        )
    raise ConflictError(
        f"its certificate is from another CA of the fleet {fleet}",
        hint="start from the folder where that CA is, or name it in edgeorch_home; "
        "if that CA is lost, lost-controller.md says what to do",
    )


def _with_lists(
    index: Index, requests: Sequence[Request], bundle: Sequence[x509.Certificate], now: float
) -> Index:
    """With what the nodes' revocation lists know more than ours."""
    for request in requests:
        with suppress(IdentityError):
            if request.crl:
                found = read_revocations(request.crl.encode(), bundle, request.name)
                index = index.with_list(found.number, found.serials, now)
    return index


def _warnings(index: Index, signer: x509.Certificate, now: float) -> tuple[str, ...]:
    def days(moment: float) -> str:
        return f"{max(0.0, moment - now) / issue.DAY:.0f} days"

    soon = now + issue.WARN_DAYS * issue.DAY
    ca_ends = signer.not_valid_after_utc.timestamp()
    said = [
        f"the certificate of {entry.name} ends in {days(entry.expires_at)}: deploy.yml renews it"
        for entry in sorted(index.nodes, key=lambda entry: entry.expires_at)
        if entry.revoked_at is None and entry.expires_at < soon and entry.expires_at < ca_ends
    ]
    if ca_ends < soon:
        said.insert(0, f"the CA ends in {days(ca_ends)}: rotate-keys.yml with -e rotate_ca=true replaces it")
    return tuple(said)


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
