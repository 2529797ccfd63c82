"""The runner's socket: who may connect, requests in, answers and exits out."""

import socket
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from edgeorch.runner import protocol
from edgeorch.runner.attempts import Attempts, log
from edgeorch.runner.loop import READABLE, WRITABLE, Loop, now
from edgeorch.runner.protocol import Ended, Inbox, Reply, Request
from edgeorch.runner.spawn import SpawnError

_CHUNK = 65_536
MAX_UNSENT = 32 << 20
"""Bytes that wait for one daemon; one that does not read for so long is disconnected."""
ACCEPT_PAUSE_S = 1.0
"""Before a daemon that could not be let in is tried again."""
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED


@dataclass(eq=False)
class Peer:
    """One connected daemon."""

    sock: socket.socket
    inbox: Inbox[Request] = field(default_factory=protocol.requests)
    unsent: bytearray = field(default_factory=bytearray)
    blocked: bool = False
    """Whether it waits for the socket to take more."""
    closing: bool = False


class Server:
    """Serves the socket. ``on_lonely`` is called when nobody was connected for ``linger_s``."""

    def __init__(
        self,
        loop: Loop,
        path: Path,
        allowed: Collection[int],
        linger_s: float | None,
        on_lonely: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._path = path
        self._allowed = allowed
        self._linger_s = linger_s
        self._on_lonely = on_lonely
        self._peers: set[Peer] = set()
        self._unsent: list[Peer] = []
        """Those who wait for the end of the round."""
        self._unasked: list[str] = []
        """What is to be forgotten at the end of the round, as what is to be started goes first."""
        self._waiting: dict[str, tuple[Peer, protocol.Start]] = {}
        """What is to be started in this order, by key, and who has asked for it."""
        self._most = 0
        """So many attempts run before something has to wait."""
        self._alone_since = now()

    def listen(self, attempts: Attempts, welcome: protocol.Welcome) -> None:
        """Bind the path, in place of one that a dead runner has left, and serve ``attempts``.

        Raises:
            OSError: the path is too long or not writable.
        """
        self._attempts = attempts
        self._welcome = welcome
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._path.unlink(missing_ok=True)
        self._listener.bind(str(self._path))
        self._path.chmod(0o660)
        self._listener.listen(64)
        self._await_daemons()
        self._watch_linger()

    def close(self) -> None:
        """Remove the socket and leave everybody."""
        self._path.unlink(missing_ok=True)
        self._listener.close()
        for peer in list(self._peers):
            self._drop(peer)

    def tell_exit(self, key: str, ended: Ended) -> None:
        """Push an exit to every daemon."""
        message = protocol.Exited(key=key, ended=ended)
        for peer in tuple(self._peers):
            self._send(peer, message)

    def _await_daemons(self) -> None:
        self._loop.watch(self._listener.fileno(), READABLE, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors: whoever waits stays readable, and to be told so for ever would take a CPU.
            log(f"cannot take a connection: {error.strerror}")
            self._loop.watch(self._listener.fileno(), 0, self._accept)
            self._loop.at(now() + ACCEPT_PAUSE_S, self._await_daemons)
            return
        sock.setblocking(False)
        peer = Peer(sock)
        self._peers.add(peer)
        self._watch(peer)
        uid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
        if uid not in self._allowed:
            log(f"refused a connection of user {uid}")
            detail = f"the runner does not serve user {uid}"
            self._send(peer, protocol.Failed(id=protocol.UNASKED, reason="no_permission", detail=detail))
            self._flush(peer)
            self._drop(peer)
            return
        self._send(peer, self._welcome)

    def forget_unasked(self) -> None:
        """Forget what nobody waits for. Before ``flush``: an answer says that all before it has been done."""
        keys, self._unasked = self._unasked, []
        for key in keys:
            self._attempts.forget(key, lambda: None)

    def start_waiting(self) -> None:
        """Start what has its turn now."""
        while self._waiting and self._attempts.running < self._most:
            peer, request = self._waiting.pop(next(iter(self._waiting)))
            self._send(peer, self._start(request))

    def flush(self) -> None:
        """Send what has come together in a round."""
        peers, self._unsent = self._unsent, []
        for peer in peers:
            self._flush(peer)

    def _drop(self, peer: Peer) -> None:
        if peer not in self._peers:
            return
        self._peers.remove(peer)
        peer.closing = True
        self._waiting = {key: one for key, one in self._waiting.items() if one[0] is not peer}
        self._loop.unwatch(peer.sock.fileno())
        peer.sock.close()
        if not self._peers:
            self._alone_since = now()
            self._watch_linger()

    def _watch_linger(self) -> None:
        if self._linger_s is not None:
            self._loop.at(self._alone_since + self._linger_s, self._check_linger)

    def _check_linger(self) -> None:
        if not self._peers and self._linger_s is not None and now() >= self._alone_since + self._linger_s:
            log("no daemon has come back")
            self._on_lonely()

    def _on_ready(self, peer: Peer, events: int) -> None:
        if peer.blocked and events & WRITABLE:
            self._flush(peer)
        if peer.closing or not events & ~WRITABLE:
            return
        try:
            data = peer.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(peer)
            return
        try:
            for request in peer.inbox.feed(data):
                self._serve(peer, request)
        except protocol.FrameError as error:
            log(f"disconnected a daemon: {error}")
            self._drop(peer)

    def _serve(self, peer: Peer, request: Request) -> None:
        if not isinstance(request, protocol.Start) or request.key in self._unasked:
            self.forget_unasked()
        match request:
            case protocol.Start(most=None):
                self._send(peer, self._start(request))
            case protocol.Start(key=key, most=int() as most):
                self._most = most
                self._waiting[key] = (peer, request)
                self.start_waiting()
            case protocol.Withdraw(id=number, key=key):
                self._waiting.pop(key, None)
                folder = self._attempts.folder(key)
                told = protocol.Started(id=number, folder=folder) if folder else protocol.Done(id=number)
                self._send(peer, told)
            case protocol.Stop(id=number, key=key, grace_s=grace_s):
                self._attempts.stop(key, grace_s, lambda: self._send(peer, protocol.Done(id=number)))
            case protocol.Forget(id=protocol.UNASKED, key=key):
                self._waiting.pop(key, None)
                self._unasked.append(key)
            case protocol.Forget(id=number, key=key):
                self._waiting.pop(key, None)
                self._attempts.forget(key, lambda: self._send(peer, protocol.Done(id=number)))
            case protocol.Renew(leases=leases):
                self._attempts.renew(leases)
            case protocol.List(id=number):
                self._list(peer, number)

    def _start(self, request: protocol.Start) -> Reply:
        try:
            folder = self._attempts.start(request)
        except SpawnError as error:
            return protocol.Failed(id=request.id, reason=error.reason, detail=error.detail, hint=error.hint)
        return protocol.Started(id=request.id, folder=folder)

    def _list(self, peer: Peer, number: int) -> None:
        known = self._attempts.known()
        chunk = tuple(islice(known, protocol.LIST_CHUNK))
        while following := tuple(islice(known, protocol.LIST_CHUNK)):
            self._send(peer, protocol.Listed(id=number, attempts=chunk, more=True))
            chunk = following
        self._send(peer, protocol.Listed(id=number, attempts=chunk))

    def _send(self, peer: Peer, message: Reply) -> None:
        if peer.closing:
            return
        if not peer.unsent:
            self._unsent.append(peer)
        peer.unsent += protocol.encode(message)
        if len(peer.unsent) > _CHUNK:
            self._flush(peer)

    def _flush(self, peer: Peer) -> None:
        if peer.closing or not peer.unsent:
            return
        try:
            del peer.unsent[: peer.sock.send(peer.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(peer)
            return
        if len(peer.unsent) > MAX_UNSENT:
            log("disconnected a daemon that does not read")
            self._drop(peer)
        elif bool(peer.unsent) is not peer.blocked:
            peer.blocked = not peer.blocked
            self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        events = READABLE | WRITABLE if peer.blocked else READABLE
        self._loop.watch(peer.sock.fileno(), events, lambda ready: self._on_ready(peer, ready))
