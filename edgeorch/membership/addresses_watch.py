"""Tells when this machine's addresses change: the kernel says so over netlink."""

import errno
import socket
from ipaddress import ip_address

import structlog
import trio

from edgeorch.addresses import usable_addresses
from edgeorch.config import Node

log = structlog.get_logger()

SETTLE_S = 0.25
"""An interface that comes up says several things in a row."""
LOOK_AGAIN_S = 60.0
"""Where netlink is not allowed, the addresses are compared this often."""

_RTMGRP_LINK = 0x1
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100
"""Multicast groups of ``linux/rtnetlink.h``."""


def announced(node: Node) -> tuple[tuple[str, str], ...]:
    """(interface, address) of every address to announce: what ``node.listen`` names, else all usable ones.

    The interface of a listed address that is not usable (loopback) is empty. A listed name is not announced:
    what it stands for here may be something else elsewhere.
    """
    usable = usable_addresses(node.networks)
    listed = [address for address in node.listen if _specific(address)]
    if not listed:
        return tuple(usable)
    names = {address: name for name, address in usable}
    return tuple((names.get(address, ""), address) for address in listed)


def _specific(address: str) -> bool:
    try:
        return not ip_address(address).is_unspecified
    except ValueError:
        return False


class AddressWatch:
    """The announced addresses, kept up to date by ``run``.

    Attributes:
        current: (interface, address) pairs as ``announced`` gives them.
        changed: set when ``current`` changes, and replaced.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self.current = announced(node)
        self.changed = trio.Event()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Only the addresses."""
        return tuple(address for _, address in self.current)

    @property
    def interfaces(self) -> tuple[str, ...]:
        """Only the interfaces, each once."""
        return tuple(dict.fromkeys(name for name, _ in self.current if name))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled."""
        try:
            notices = trio.socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        except OSError as error:
            log.warning("netlink is not allowed, addresses are compared every minute", reason=str(error))
            task_status.started()
            while True:
                await trio.sleep(LOOK_AGAIN_S)
                self._look()
        with notices:
            await notices.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
            self._look()
            task_status.started()
            while True:
                await _notice(notices)
                with trio.move_on_after(SETTLE_S):
                    while True:
                        await _notice(notices)
                self._look()

    def _look(self) -> None:
        found = announced(self._node)
        if found == self.current:
            return
        log.info("addresses changed", now=[address for _, address in found], before=list(self.addresses))
        self.current = found
        before, self.changed = self.changed, trio.Event()
        before.set()


async def _notice(notices: trio.socket.SocketType) -> None:
    try:
        await notices.recv(65536)
    except OSError as error:
        # The kernel had more to say than fits: something has changed, which is all we want to know.
        if error.errno != errno.ENOBUFS:
            raise
