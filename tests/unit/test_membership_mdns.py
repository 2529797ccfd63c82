"""The Trio side of mDNS, over a responder that a test drives from another thread."""

import threading

import pytest
import structlog
import trio
import zeroconf
from membership_world import Watch, node_info

from edgeorch.membership import Fleet, Mdns, SelfInfo
from edgeorch.membership.mdns import MAX_INBOX
from edgeorch.membership.responder import Found
from edgeorch.testing.discovery import FakeLan

OURS = Fleet("home", "ca")
PEER = "b" * 10
THREADS_S = 0.05
"""Real time that worker threads have before the mock clock jumps."""


class Responder:
    made = ()
    broken = False

    def __init__(self, addresses, own, take):
        self.addresses, self.take, self.announced, self.closed = addresses, take, None, False
        type(self).made = (*self.made, self)

    def open(self):
        if self.broken:
            raise OSError(98, "Address already in use")

    def announce(self, announcement):
        self.announced = announcement

    def close(self):
        self.closed = True


@pytest.fixture
def kind():
    return type("Fresh", (Responder,), {})


class Heard:
    def __init__(self):
        self.all = []
        self.changed = trio.Event()

    def __call__(self, *what):
        self.all.append(what)
        before, self.changed = self.changed, trio.Event()
        before.set()

    async def count(self, number):
        with trio.fail_after(5):
            while len(self.all) < number:
                await self.changed.wait()
        return self.all


def make(kind, watch, heard):
    return Mdns(OURS, SelfInfo(node_info()), watch, found=heard, withdrawn=heard, responder=kind)


def found(**fields):
    return Found(
        **({"name": "garage", "fleet": "home", "ca": "ca", "port": 7, "addresses": ("10.0.0.2",)} | fields)
    )


def in_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


async def test_it_announces_only_when_ready_and_closes_at_the_end(nursery, kind):
    mdns = make(kind, Watch("10.0.0.1"), Heard())
    async with trio.open_nursery() as inner:
        await inner.start(mdns.run)
        await trio.testing.wait_all_tasks_blocked(0.05)
        (responder,) = kind.made
        assert (responder.addresses, responder.announced) == (["10.0.0.1"], None)
        mdns.announce()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert responder.announced.addresses == ("10.0.0.1",)
        inner.cancel_scope.cancel()
    assert responder.closed


async def test_new_addresses_make_everything_anew(nursery, kind):
    watch = Watch("10.0.0.1")
    mdns = make(kind, watch, Heard())
    mdns.announce()
    await nursery.start(mdns.run)
    await trio.testing.wait_all_tasks_blocked(0.05)
    watch.move()
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert len(kind.made) == 1
    watch.move("10.0.0.9")
    await trio.testing.wait_all_tasks_blocked(0.05)
    first, second = kind.made
    assert first.closed
    assert second.announced.addresses == ("10.0.0.9",)
    nursery.cancel_scope.cancel()


async def test_another_ca_makes_everything_anew(nursery, kind):
    heard = Heard()
    mdns = make(kind, Watch("10.0.0.1"), heard)
    mdns.announce()
    await nursery.start(mdns.run)
    await trio.testing.wait_all_tasks_blocked(0.05)
    mdns.change(OURS)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert len(kind.made) == 1
    mdns.change(Fleet("home", "new,ca"))
    await trio.testing.wait_all_tasks_blocked(0.05)
    first, second = kind.made
    assert first.closed
    assert second.announced.ca == "new,ca"
    for number, ca in enumerate(("ca", "new", "newer,new", "other", ""), start=1):
        in_thread(lambda number=number, ca=ca: second.take(f"{number:010d}", found(ca=ca)))
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert sorted(node_id for node_id, _ in heard.all) == [f"{number:010d}" for number in (1, 2, 3)]
    nursery.cancel_scope.cancel()


async def test_what_comes_from_the_other_thread_is_filtered(nursery, kind):
    heard = Heard()
    mdns = make(kind, Watch("10.0.0.1"), heard)
    await nursery.start(mdns.run)
    await trio.testing.wait_all_tasks_blocked(0.05)
    take = kind.made[0].take
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            in_thread(lambda: take(PEER, found(fleet="other")))
            in_thread(lambda: take("c" * 10, found(ca="other")))
            await trio.testing.wait_all_tasks_blocked(0.01)
    told = [line for line in logs if "another fleet" in line["event"]]
    said = sorted((line["node"], line["fleet"], line["ca"]) for line in told)
    assert said == [(PEER, "other", "ca"), ("c" * 10, "home", "other")]
    in_thread(lambda: take(PEER, found(addresses=("127.0.0.1", "10.0.0.2"))))
    assert await heard.count(1) == [(PEER, (("10.0.0.2", 7),))]
    in_thread(lambda: take(PEER, None))
    assert (await heard.count(2))[1] == (PEER,)
    nursery.cancel_scope.cancel()
    in_thread(lambda: take(PEER, None))


async def test_a_flood_fills_the_inbox_and_no_more(nursery, kind):
    heard = Heard()
    mdns = make(kind, Watch("10.0.0.1"), heard)
    await nursery.start(mdns.run)
    await trio.testing.wait_all_tasks_blocked(0.05)
    # The Trio thread is busy here, so nothing is taken out meanwhile.
    in_thread(lambda: [kind.made[0].take(f"{number:010d}", found()) for number in range(3 * MAX_INBOX)])
    assert len(await heard.count(MAX_INBOX)) == MAX_INBOX
    nursery.cancel_scope.cancel()


async def test_a_port_in_use_is_said_once_and_tried_again(autojump_clock, nursery, kind):
    autojump_clock.autojump_threshold = THREADS_S
    kind.broken = True
    mdns = make(kind, Watch("10.0.0.1"), Heard())
    with structlog.testing.capture_logs() as logs:
        await nursery.start(mdns.run)
        await trio.sleep(200)
        assert len(kind.made) > 3
        kind.broken = False
        await trio.sleep(200)
    assert [line["event"] for line in logs] == ["mDNS does not work now, trying again", "mDNS listens"]
    nursery.cancel_scope.cancel()


async def test_an_announcement_that_fails_is_made_again(autojump_clock, nursery, kind):
    autojump_clock.autojump_threshold = THREADS_S
    failures = [zeroconf.EventLoopBlocked(), OSError(101, "Network is unreachable")]

    def announce(self, announcement):
        if failures:
            raise failures.pop()
        self.announced = announcement

    kind.announce = announce
    mdns = make(kind, Watch("10.0.0.1"), Heard())
    mdns.announce()
    await nursery.start(mdns.run)
    await trio.sleep(60)
    assert [responder.closed for responder in kind.made] == [True, True, False]
    assert kind.made[-1].announced.node_id == node_info().id
    nursery.cancel_scope.cancel()


async def test_the_twin_keeps_the_same_rules(nursery):
    lan, heard = FakeLan(), Heard()
    watch = Watch("10.0.0.2")
    one = lan.discovery(OURS, SelfInfo(node_info()), Watch("10.0.0.1"), found=heard, withdrawn=heard)
    two = lan.discovery(OURS, SelfInfo(node_info(PEER)), watch, found=Heard(), withdrawn=Heard())
    await nursery.start(one.run)
    async with trio.open_nursery() as inner:
        await inner.start(two.run)
        two.announce()
        assert await heard.count(1) == [(PEER, (("10.0.0.2", 56002),))]
        watch.move("10.0.0.9")
        assert (await heard.count(2))[1] == (PEER, (("10.0.0.9", 56002),))
        inner.cancel_scope.cancel()
    assert heard.all[2:] == [(PEER,)]
    lan.announce(PEER, Fleet("home", "other"), (("10.0.0.2", 1),))
    assert len(heard.all) == 3
    one.change(Fleet("home", "ca,other"))
    assert heard.all[3:] == [(PEER, (("10.0.0.2", 1),))]
    nursery.cancel_scope.cancel()
