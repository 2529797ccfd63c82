"""Membership as the node sees it: one object that keeps the table true."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import structlog
import trio

from edgeorch.config import Config
from edgeorch.errors import ConflictError, EdgeorchError, NotFoundError
from edgeorch.identity import PeerIdentity
from edgeorch.membership.addresses_watch import AddressWatch
from edgeorch.membership.dials import MAX_ADDRESSES, Dials
from edgeorch.membership.link_control import Address, LinkControl, Revocations
from edgeorch.membership.mdns import Discovery, Fleet, Mdns
from edgeorch.membership.probe import Probe
from edgeorch.membership.sampler import Sampler
from edgeorch.membership.seeds import Seeds, parse_seeds
from edgeorch.membership.self_info import SelfInfo
from edgeorch.membership.table import GONE, Table
from edgeorch.model import NodeInfo, Peer, PeerState, Sample
from edgeorch.seams import Seams
from edgeorch.wire import From, Handlers
from edgeorch.wire.messages import Crl, Digest, Done, GetCrl, Goodbye, Hello, Ping, Pong

log = structlog.get_logger()

GOODBYE_S = 1.0
CRL_S = 5.0


class Membership:
    """Who exists and who is alive.

    ``links.on_hello``, ``on_up``, ``on_down`` and ``on_barred`` are set to this object's methods, and its
    three handlers are put into ``handlers``.

    Args:
        config: ``discovery``, ``membership`` and ``wire``.
        self_info: what this node says of itself; its addresses follow ``watch``.
        links: opens links and asks over them.
        handlers: where to put the handlers of ``Ping``, ``Goodbye`` and ``GetCrl``.
        revocations: this node's revocation list, passed on to peers and taken from them.
        sampler: measures this machine.
        watch: this machine's addresses.
        fleet: name and CA fingerprint, for mDNS.
        seams: time and chance.
        discovery: makes what ``discovery.mdns`` asks for; called as ``Mdns`` is.

    Attributes:
        table: all peers; ``table.snapshot()`` and ``table.changed`` are what placement needs.

    Raises:
        StartError: a seed is not ``HOST`` or ``HOST:PORT``.
    """

    def __init__(
        self,
        config: Config,
        self_info: SelfInfo,
        links: LinkControl,
        handlers: Handlers,
        *,
        revocations: Revocations,
        sampler: Sampler,
        watch: AddressWatch,
        fleet: Fleet,
        seams: Seams,
        discovery: Callable[..., Discovery] = Mdns,
    ) -> None:
        own = self_info.info.id
        self.table = Table(own, config.membership, config.wire.max_links, seams)
        self._self_info = self_info
        self._links = links
        self._revocations = revocations
        self._sampler = sampler
        self._watch = watch
        self._seams = seams
        self._since = seams.wall()
        self._wanted: dict[str, NodeInfo] = {}
        self._elsewhere: dict[str, tuple[Address, ...]] = {}
        """Where others say that known nodes are."""
        self._lists: dict[str, int] = {}
        """Newest number of a revocation list that each peer offered."""
        self._list_offered = trio.Event()
        self.probe = Probe(
            config.membership,
            self_info,
            self.table,
            links,
            seams,
            sample=sampler.current,
            crl_number=lambda: revocations.crl_number,
            met=self._met,
            learned=self._learned,
            crl_offered=self._crl_offered,
            ended=self._ended,
        )
        self._dials = Dials(links, self.table.here, self._mine, seams)
        self._seeds = Seeds(parse_seeds(config), self.table, links, own=own, seams=seams)
        self._discovery: Discovery | None = None
        if config.discovery.mdns:
            self._discovery = discovery(fleet, self_info, watch, found=self._found, withdrawn=self._withdrawn)
        links.on_hello, links.on_up, links.on_down = self.on_hello, self.on_up, self.on_down
        links.on_barred = self.on_barred
        handlers.instant[Ping] = self.handle_ping
        handlers.requests |= {Goodbye: self.handle_goodbye, GetCrl: self.handle_get_crl}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sample, probe, browse and dial until cancelled. Started once the first sample is there."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch.run)
            await nursery.start(self._sampler.run)
            await nursery.start(self.probe.run)
            await nursery.start(self._dials.run)
            await nursery.start(self._seeds.run)
            if self._discovery is not None:
                await nursery.start(self._discovery.run)
            nursery.start_soon(self._follow_addresses)
            nursery.start_soon(self._fetch_lists)
            task_status.started()

    def announce(self) -> None:
        """The node is ready: announce it on the LAN from now on."""
        if self._discovery is not None:
            self._discovery.announce()

    def follow_seeds(self, config: Config) -> None:
        """Dial the seeds of these settings from now on.

        Raises:
            StartError: a seed is not ``HOST`` or ``HOST:PORT``; nothing changes.
        """
        self._seeds.change(parse_seeds(config))

    def recheck(self, fleet: Fleet) -> None:
        """Certificates or the revocation list changed: judge every peer by them, and announce their CA.

        Args:
            fleet: name and trusted CAs as of now.
        """
        self._links.recheck()
        if self._discovery is not None:
            self._discovery.change(fleet)

    async def say_goodbye(self) -> None:
        """Tell every connected peer that this node stops on purpose; takes at most ``GOODBYE_S``."""
        self._self_info.leaving = True
        with trio.move_on_after(GOODBYE_S, shield=True):
            async with trio.open_nursery() as nursery:
                for node_id in self.table.snapshot():
                    if self._links.connected(node_id):
                        nursery.start_soon(self._part_from, node_id)

    async def _part_from(self, node_id: str) -> None:
        try:
            await self._links.call(node_id, Goodbye())
        except EdgeorchError as error:
            log.debug("goodbye not heard", node=node_id, reason=str(error))

    # For the parts above

    def own(self) -> Peer:
        """This node in the form of a peer, with its sample as of now."""
        info = self._self_info.info
        return Peer(
            info=info,
            state=PeerState.ALIVE,
            since=self._since,
            sample=self._sampler.current(),
            sample_at=self._sampler.last_ok,
            reason=self.table.clones.about(info.id),
        )

    @property
    def changed(self) -> trio.Event:
        """Set at each change of the table; replaced by a new event each time."""
        return self.table.changed

    @property
    def states_changed(self) -> trio.Event:
        """Set when a peer comes, goes or changes its state; replaced by a new event each time."""
        return self.table.states_changed

    def snapshot(self) -> Mapping[str, Peer]:
        """All other nodes by id."""
        return self.table.snapshot()

    def get(self, node_id: str) -> Peer | None:
        """One of them, or None."""
        return self.table.get(node_id)

    def sampled(self, node_id: str, sample: Sample) -> None:
        """A fresh sample of a known node came with its answer."""
        self.table.sampled(node_id, sample, trio.current_time())

    def forget(self, node_id: str) -> None:
        """Drop a dead or left node.

        Raises:
            NotFoundError: the node is not known.
            ConflictError: it is alive or may be.
        """
        if self.table.get(node_id) is None:
            raise NotFoundError(f"node {node_id} is not known here")
        if not self.table.forget(node_id):
            raise ConflictError(f"node {node_id} is alive", hint="stop it first, then forget it")
        self._ended(node_id)

    def hello(self) -> Hello:
        """The first frame of a new link."""
        return Hello(
            info=self._self_info.info,
            sample=self._sampler.current(),
            crl_number=self._revocations.crl_number,
            time=self._seams.wall(),
            known=max(len(self.table), len(self._dials)),
        )

    def statistics(self) -> Mapping[str, Any]:
        """Counts for ``/metrics``."""
        states = Counter(peer.state for peer in self.table.snapshot().values())
        return {
            "peers": {str(state): states[state] for state in PeerState},
            "candidates": len(self._dials),
            "conflicts": len(self.table.clones.found),
            "pings_answered": self.probe.answered,
            "pings_unanswered": self.probe.unanswered,
            "late_s": self.probe.late_s,
            "sample_age_s": trio.current_time() - self._sampler.last_ok,
        }

    # From the links

    def on_hello(self, sender: From, hello: Hello, _identity: PeerIdentity) -> None:
        """A new link, of either side's making; the certificate was compared with the Hello by then."""
        known = self.table.get(sender.node_id)
        self.probe.hear(hello.info, hello.sample, address=sender.address)
        if known is None or known.state is not PeerState.ALIVE or known.info.boot != hello.info.boot:
            # A newcomer to a large fleet meets everybody; only the first tell it everything.
            ignorant = hello.known < len(self.table) / 2
            self.probe.linked(sender.node_id, fresh=self.table.meshed or ignorant)
        self._crl_offered(sender.node_id, hello.crl_number)

    def on_up(self, node_id: str) -> None:
        """There was no link. In a large fleet links come and go, and only one to a newcomer is news."""
        if self.table.meshed:
            self.probe.linked(node_id, fresh=True)

    def on_down(self, node_id: str, why: str) -> None:
        """A link broke that nobody meant to close."""
        self.table.link_broke(node_id, why, trio.current_time())

    def on_barred(self, node_id: str, why: str) -> None:
        """A node's certificate was revoked; its links are cut by now."""
        self.table.bar(node_id, why, trio.current_time())
        self._forget_replaced()

    def handle_ping(self, sender: From, ping: Ping) -> Pong:
        """Answer a probe; ``WireError`` when it claims another node."""
        return self.probe.answer(sender, ping)

    async def handle_goodbye(self, sender: From, _goodbye: Goodbye) -> Done:
        """The peer stops; it stays known, and is dialled again in case it comes back."""
        self.table.left(sender.node_id, trio.current_time())
        self._dials.retry(sender.node_id)
        return Done()

    async def handle_get_crl(self, _sender: From, _request: GetCrl) -> Crl:
        """Give a peer the revocation list."""
        return Crl(pem=self._revocations.crl_pem)

    # From the parts below

    def _met(self, info: NodeInfo) -> None:
        before = self._wanted.get(info.id)
        if (
            before is not None
            and before.incarnation == info.incarnation
            and before.addresses == info.addresses
        ):
            return
        self._wanted[info.id] = info
        self.table.clones.check_name(info, (self.own(),))
        self._forget_replaced()
        self._want(info)

    def _forget_replaced(self) -> None:
        """Nobody is missed where a revoked node has a successor: it would be told as dead for a day."""
        for node_id in self.table.replaced():
            log.info("a revoked node is forgotten, another one has its name", node=node_id)
            self.forget(node_id)

    def _want(self, info: NodeInfo) -> None:
        """What the node itself says comes first; what others say may only add to it."""
        own_words = [(address, info.wire_port) for address in info.addresses]
        addresses = dict.fromkeys((*own_words, *self._elsewhere.get(info.id, ())))
        usable = [address for address in addresses if not self._mine(*address)]
        self._links.want(info.id, usable[: 2 * MAX_ADDRESSES])

    def _found(self, node_id: str, addresses: Sequence[Address]) -> None:
        peer = self.table.get(node_id)
        if peer is not None:
            self._elsewhere[node_id] = tuple(addresses[:MAX_ADDRESSES])
            self._want(peer.info)
        self._dials.offer(node_id, addresses, announced=True)

    def _withdrawn(self, node_id: str) -> None:
        self._elsewhere.pop(node_id, None)
        self._dials.withdraw(node_id)

    def _learned(self, lines: Iterable[Digest]) -> None:
        for line in lines:
            if line.state in GONE:
                continue
            peer = self.table.get(line.id)
            addresses = [(address, line.wire_port) for address in line.addresses[:MAX_ADDRESSES]]
            if peer is not None and line.incarnation > peer.info.incarnation:
                # It has changed since we last heard it; perhaps it has moved.
                self._elsewhere[line.id] = tuple(addresses)
                self._want(peer.info)
            if not self.table.here(line.id):
                self._dials.offer(line.id, addresses, announced=False)

    def _ended(self, node_id: str) -> None:
        """What its links still carry will not be answered; or the node is forgotten."""
        if self.table.get(node_id) is None:
            for memory in (self._wanted, self._lists, self._elsewhere):
                memory.pop(node_id, None)
            self._links.unwant(node_id)
        else:
            self._links.drop(node_id)
            self._dials.retry(node_id)

    def _mine(self, host: str, port: int) -> bool:
        return port == self._self_info.info.wire_port and host in self._watch.addresses

    async def _follow_addresses(self) -> None:
        while True:
            changed = self._watch.changed
            self._self_info.change(addresses=self._watch.addresses)
            await changed.wait()
            # A cable that is in again, or Wi-Fi that came late: what failed before says nothing now.
            self._links.retry()
            self._dials.retry_all()
            self._seeds.retry()

    # Revocation lists

    def _crl_offered(self, node_id: str, number: int) -> None:
        if number > self._revocations.crl_number and number > self._lists.get(node_id, 0):
            self._lists[node_id] = number
            self._list_offered.set()

    async def _fetch_lists(self) -> None:
        """A list is asked of each peer once per number: one that cannot be used is not asked for again."""
        asked: dict[str, int] = {}
        while True:
            await self._list_offered.wait()
            self._list_offered = trio.Event()
            for node_id, number in list(self._lists.items()):
                if number > self._revocations.crl_number and asked.get(node_id) != number:
                    asked[node_id] = number
                    await self._fetch_list(node_id)

    async def _fetch_list(self, node_id: str) -> None:
        try:
            with trio.move_on_after(CRL_S):
                answer: Crl = await self._links.call(node_id, GetCrl())
                if self._revocations.take_crl(answer.pem):
                    self._links.recheck()
        except EdgeorchError as error:
            log.warning("the revocation list of a peer was not taken", node=node_id, reason=str(error))
