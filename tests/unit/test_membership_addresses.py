"""Which addresses are announced, and how a change is noticed."""

import trio

from edgeorch.config import Node
from edgeorch.membership import AddressWatch
from edgeorch.membership import addresses_watch as module


def machine(monkeypatch, *rows):
    monkeypatch.setattr(module, "usable_addresses", lambda _networks: list(rows))


def test_all_usable_addresses_are_announced(monkeypatch):
    machine(monkeypatch, ("eth0", "10.0.0.1"), ("eth0", "fd00::1"), ("wlan0", "10.1.0.1"))
    for listen in ((), ("0.0.0.0",), ("::",), ("some-name",)):
        watch = AddressWatch(Node(listen=listen))
        assert watch.addresses == ("10.0.0.1", "fd00::1", "10.1.0.1")
        assert watch.interfaces == ("eth0", "wlan0")


def test_only_listed_addresses_are_announced(monkeypatch):
    machine(monkeypatch, ("eth0", "10.0.0.1"), ("wlan0", "10.1.0.1"))
    watch = AddressWatch(Node(listen=("10.1.0.1", "127.0.0.2", "some-name")))
    assert watch.current == (("wlan0", "10.1.0.1"), ("", "127.0.0.2"))
    assert watch.interfaces == ("wlan0",)


async def test_without_netlink_addresses_are_compared_now_and_then(autojump_clock, nursery, monkeypatch):
    def denied(*_):
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(trio.socket, "socket", denied)
    machine(monkeypatch, ("eth0", "10.0.0.1"))
    watch = AddressWatch(Node())
    await nursery.start(watch.run)
    changed = watch.changed
    machine(monkeypatch, ("eth0", "10.0.0.9"))
    with trio.fail_after(module.LOOK_AGAIN_S + 1):
        await changed.wait()
    assert watch.addresses == ("10.0.0.9",)
    assert not watch.changed.is_set()
    nursery.cancel_scope.cancel()
