"""Which links there are: dialled, crossed, lost, refused, idle."""

import itertools
import random

import msgspec
import pytest
import structlog.testing
import trio
from trio.testing import wait_all_tasks_blocked
from wire_net import ENDS, NOW, A, B, C, MemoryNet, hello

from edgeorch.errors import EdgeorchError, NodeUnreachableError
from edgeorch.model import Caller
from edgeorch.wire import Handlers, codec
from edgeorch.wire.dialler import REFUSED_RETRY_S, Dialler
from edgeorch.wire.handshake import HANDSHAKE_S
from edgeorch.wire.link import DRAIN_S, MAX_INBOUND, MAX_QUEUED
from edgeorch.wire.links import IDLE_S
from edgeorch.wire.messages import Chunk, Done, FollowOutput, Goodbye, Hello, Renew, Renewed
from edgeorch.wire.pulse import FRESH_S, LATE_S


async def done(_sender, _request):
    return Done()


@pytest.fixture
async def net(nursery):
    return MemoryNet(nursery)


def open_connections(links):
    return links.statistics()["links"], len(links._open)


async def test_both_ends_learn_of_a_link_once(net):
    a, b = net.add(A), net.add(B)
    await net.start(A, B)
    a.want(B, [(B, 1)])
    await wait_all_tasks_blocked()
    assert a.events == [("hello", B, B), ("up", B)]
    assert b.events == [("hello", A, A), ("up", A)]
    assert a.connected(B)
    assert b.connected(A)


async def test_a_node_wanted_before_the_start_is_dialled(net):
    a = net.add(A)
    net.add(B)
    a.want(B, [(B, 1)])
    await net.start(B, A)
    await wait_all_tasks_blocked()
    assert a.connected(B)


async def test_a_node_does_not_want_itself(net):
    a = net.add(A)
    await net.start(A)
    a.want(A, [(A, 1)])
    await wait_all_tasks_blocked()
    assert net.dialled == []
    assert await a.dial_unknown(A, 1) == A
    assert not a.connected(A)


async def test_an_unknown_address_tells_its_node(net):
    a = net.add(A)
    net.add(B)
    await net.start(A, B)
    assert await a.dial_unknown(B, 1) == B
    assert a.connected(B)
    with pytest.raises(NodeUnreachableError, match="refused"):
        await a.dial_unknown(C, 1)


async def test_an_address_of_another_node_is_left_without_a_word(net):
    a, b = net.add(A), net.add(B)
    await net.start(A, B)
    a.want(C, [(B, 1)])
    await wait_all_tasks_blocked()
    assert b.events == []
    with pytest.raises(NodeUnreachableError, match=f"is node {B}, not {C}") as caught:
        await a.call(C, Goodbye())
    assert caught.value.sent is False


async def test_a_slow_address_is_overtaken(net, autojump_clock):
    a = net.add(A)
    net.add(B)
    net.silent.add("10.9.9.9")
    await net.start(A, B)
    a.want(B, [("10.9.9.9", 1), (B, 1)])
    with trio.fail_after(1):
        while not a.connected(B):
            await a._diallers[B]._changed.wait()


@pytest.mark.parametrize("first", [A, B])
async def test_crossing_dials_leave_the_link_of_the_lower_id(net, autojump_clock, first):
    handlers = Handlers({Goodbye: done})
    a, b = net.add(A, handlers), net.add(B, handlers)
    await net.start(A, B)
    net.latency = 0.1
    by_id = {A: a, B: b}
    second = B if first == A else A
    by_id[first].want(second, [(second, 1)])
    by_id[second].want(first, [(first, 1)])
    await trio.sleep(1)
    assert len(net.dialled) == 2
    assert open_connections(a) == (1, 1)
    assert open_connections(b) == (1, 1)
    assert a._links[B].greeted.dialled
    assert not b._links[A].greeted.dialled
    assert not [event for event in a.events + b.events if event[0] == "down"]
    await a.call(B, Goodbye())
    await b.call(A, Goodbye())


async def test_a_call_in_flight_on_a_link_that_is_given_up_finishes(net, autojump_clock):
    async def slow(_sender, _request):
        await trio.sleep(2)
        return Done()

    a, b = net.add(A, Handlers({Goodbye: slow})), net.add(B)
    await net.start(A, B)
    await b.dial_unknown(A, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.call, A, Goodbye())
        await wait_all_tasks_blocked()
        a._links[B].drain()
        await wait_all_tasks_blocked()
        assert open_connections(a) == open_connections(b) == (0, 1)
    await wait_all_tasks_blocked()
    assert open_connections(a) == open_connections(b) == (0, 0)
    assert trio.current_time() == pytest.approx(2)


async def test_a_link_that_is_given_up_is_cut_in_the_end(net, autojump_clock):
    async def slow(_sender, _request):
        await trio.sleep(1000)

    a, b = net.add(A, Handlers({Goodbye: slow})), net.add(B)
    await net.start(A, B)
    await b.dial_unknown(A, 1)
    caught = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_unwrapped, b.call, A, Goodbye(), caught)
        await wait_all_tasks_blocked()
        a._links[B].drain()
    assert [error.sent for error in caught] == [True]
    assert trio.current_time() == pytest.approx(DRAIN_S)


async def test_a_dial_long_after_the_link_replaces_it(net, autojump_clock):
    a, b = net.add(A), net.add(B)
    await net.start(A, B)
    await a.dial_unknown(B, 1)
    await trio.sleep(60)
    # B has lost the link, and A has not noticed.
    old = a._links[B]
    b._links.pop(A)
    await b.dial_unknown(A, 1)
    assert a._links[B] is not old
    await trio.sleep(10)
    assert open_connections(a) == (1, 1)


async def test_a_dial_of_a_restarted_peer_replaces_the_link_at_once(net, autojump_clock):
    boots = [1]
    a, b = net.add(A), net.add(B, says=lambda: _booted(boots[0]))
    await net.start(A, B)
    await a.dial_unknown(B, 1)
    old = a._links[B]
    b._links.pop(A)
    boots[0] = 2
    await b.dial_unknown(A, 1)
    assert a._links[B] is not old


def _booted(boot):
    return Hello(info=msgspec.structs.replace(hello(B).info, boot=boot))


async def test_a_lost_link_is_told_fails_calls_at_once_and_comes_back(net, autojump_clock):
    async def hang(_sender, _request):
        await trio.sleep_forever()

    a = net.add(A)
    net.add(B, Handlers({Goodbye: hang}))
    await net.start(A, B)
    a.want(B, [(B, 1)])
    caught = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_unwrapped, a.call, B, Goodbye(), caught)
        await wait_all_tasks_blocked()
        net.down.add(B)
        await net.cut()
    assert [error.sent for error in caught] == [True]
    assert ("down", B, "the peer closed the connection") in a.events
    before = trio.current_time()
    with pytest.raises(NodeUnreachableError, match="lost") as caught:
        await a.call(B, Goodbye())
    assert caught.value.sent is False
    assert trio.current_time() == before
    net.down.clear()
    await trio.sleep(30)
    assert a.connected(B)
    assert a.events[-1] == ("up", B)


async def _unwrapped(call, node_id, request, caught):
    try:
        await call(node_id, request)
    except EdgeorchError as error:
        caught.append(error)


async def test_a_peer_that_is_down_is_retried_with_jitter_and_logged_once(net, autojump_clock):
    a = net.add(A)
    await net.start(A)
    with structlog.testing.capture_logs() as logs:
        a.want(B, [(B, 1)])
        await trio.sleep(120)
    assert len([entry for entry in logs if entry["event"] == "no link"]) == 1
    times = [when for when, _, _ in net.dialled]
    assert 15 < len(times) < 60
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) <= 10


async def test_a_moved_peer_is_followed_at_once(net, autojump_clock):
    a = net.add(A)
    net.add(B)
    await net.start(A, B)
    a.want(B, [("elsewhere", 1)])
    await trio.sleep(100)
    before = trio.current_time()
    a.want(B, [(B, 1)])
    await wait_all_tasks_blocked()
    assert a.connected(B)
    assert trio.current_time() == before


async def test_all_lost_peers_are_dialled_at_once_on_another_network(net, autojump_clock):
    a = net.add(A)
    net.add(B)
    await net.start(A, B)
    net.down.add(B)
    a.want(B, [(B, 1)])
    await trio.sleep(100)
    net.down.clear()
    before = trio.current_time()
    a.retry()
    await wait_all_tasks_blocked()
    assert a.connected(B)
    assert trio.current_time() == before


async def test_three_ends_of_file_in_a_row_mean_refused(net, autojump_clock):
    a = net.add(A)
    net.add(B)
    net.closing.add(B)
    await net.start(A, B)
    a.want(B, [(B, 1)])
    await trio.sleep(10)
    assert len(net.dialled) == 3
    with pytest.raises(NodeUnreachableError, match=r"refused.*may not accept"):
        await a.call(B, Goodbye())
    await trio.sleep(REFUSED_RETRY_S)
    assert len(net.dialled) == 4
    net.closing.clear()
    a.recheck()
    await wait_all_tasks_blocked()
    assert a.connected(B)


async def test_a_revoked_peer_is_told_why_and_cut_on_recheck(net, autojump_clock):
    a, b = net.add(A), net.add(B)
    await net.start(A, B)
    a.want(B, [(B, 1)])
    await wait_all_tasks_blocked()
    net.revoked.add(A)
    b.recheck()
    await wait_all_tasks_blocked()
    assert not b.connected(A)
    assert b.events[-1] == ("barred", A, f"{A} is revoked")
    await trio.sleep(1)
    assert net.refusals == ["revoked"]
    assert a._diallers[B].state == "refused"
    assert "is revoked" in a._diallers[B].reason


async def test_a_revoked_peer_without_a_link_is_told_too(net, autojump_clock):
    a, b = net.add(A, max_links=0), net.add(B)
    await net.start(A, B)
    a.want(B, [(B, 1)])
    await a.dial_unknown(B, 1)
    await trio.sleep(2 * IDLE_S)
    assert not a.connected(B)
    net.revoked.add(B)
    a.recheck()
    assert a.events[-1] == ("barred", B, f"{B} is revoked")
    before = len(a.events)
    a.unwant(B)
    a.recheck()
    assert len(a.events) == before
    assert not b.connected(A)


async def test_links_of_a_dropped_ca_are_replaced_and_lose_nothing(net, autojump_clock):
    free = trio.Event()

    async def slow(_sender, _request):
        await free.wait()
        return Done()

    a, b = net.add(A), net.add(B, Handlers(requests={Goodbye: slow}))
    await net.start(A, B)
    a.want(B, [(B, 1)])
    await wait_all_tasks_blocked()
    answers = []

    async def ask():
        answers.append(await a.call(B, Goodbye()))

    net.nursery.start_soon(ask)
    await wait_all_tasks_blocked()
    net.replaced |= {A, B}
    a.recheck()
    b.recheck()
    net.nursery.start_soon(ask)
    await trio.sleep(1)
    assert a.connected(B)
    assert b.connected(A)
    free.set()
    await wait_all_tasks_blocked()
    assert answers == [Done(), Done()]
    assert {event[0] for event in (*a.events, *b.events)} == {"hello", "up"}
    assert open_connections(a) == open_connections(b) == (1, 1)


@pytest.mark.parametrize("dialler", [A, B])
async def test_clocks_that_differ_are_refused_as_such_and_soon_tried_again(net, autojump_clock, dialler):
    """The clock of A is so far ahead that every certificate has ended there; that of B is right."""
    net.clocks[A] = ENDS + 1
    for node_id in (A, B):
        net.add(node_id, says=lambda node_id=node_id: hello(node_id, time=net.clocks.get(node_id, NOW)))
    await net.start(A, B)
    links, other = net.links[dialler], B if dialler == A else A
    links.want(other, [(other, 1)])
    await trio.sleep(1)
    assert set(net.refusals) == {"clock"}
    found = links._diallers[other]
    assert found.state == "lost"
    assert "expired at" in found.reason
    assert "check the clocks of both nodes" in found.reason
    del net.clocks[A]
    await trio.sleep(10)
    assert links.connected(other)


@pytest.mark.parametrize("dialler", [A, B])
async def test_a_certificate_that_has_ended_by_both_clocks_is_expired(net, autojump_clock, dialler):
    net.clocks |= {A: ENDS + 1, B: ENDS + 1}
    for node_id in (A, B):
        net.add(node_id, says=lambda node_id=node_id: hello(node_id, time=ENDS + 1))
    await net.start(A, B)
    links, other = net.links[dialler], B if dialler == A else A
    links.want(other, [(other, 1)])
    await trio.sleep(1)
    assert net.refusals == ["expired"]
    assert links._diallers[other].state == "refused"


async def test_a_clock_before_every_certificate_is_wrong_whatever_the_other_says(net, autojump_clock):
    net.clocks[A] = -1.0
    net.add(A)
    net.add(B)
    await net.start(A, B)
    net.links[A].want(B, [(B, 1)])
    await trio.sleep(1)
    assert "begins at" in net.links[A]._diallers[B].reason
    assert net.links[A]._diallers[B].state == "lost"
    net.links[B].want(A, [(A, 1)])
    await trio.sleep(1)
    assert "clock" in net.refusals
    del net.clocks[A]
    await trio.sleep(10)
    assert net.links[A].connected(B)


async def test_a_hello_that_names_another_node_is_refused(net):
    a, b = net.add(A, says=lambda: hello(A)), net.add(B, says=lambda: hello(B))
    await net.start(A, B)
    a._hello = lambda: hello(C)
    with pytest.raises(NodeUnreachableError, match=f"the certificate is of node {A}, the Hello of '{C}'"):
        await a.dial_unknown(B, 1)
    assert net.refusals == ["id_mismatch"]
    assert b.events == []


async def test_protocols_that_do_not_overlap_are_refused(net):
    a = net.add(A, says=lambda: hello(A, protocol_min=7, protocol_max=9))
    net.add(B)
    await net.start(A, B)
    with pytest.raises(NodeUnreachableError, match="speaks protocol 7 to 9"):
        await a.dial_unknown(B, 1)


async def test_a_silent_host_costs_the_handshake_time_once(net, autojump_clock):
    a = net.add(A)
    net.silent.add(B)
    await net.start(A)
    a.want(B, [(B, 1)])
    with pytest.raises(NodeUnreachableError, match="no answer within 5 s"):
        await a.call(B, Goodbye())
    assert trio.current_time() == pytest.approx(HANDSHAKE_S, abs=0.1)
    before = trio.current_time()
    with pytest.raises(NodeUnreachableError):
        await a.call(B, Goodbye())
    assert trio.current_time() == before


async def test_above_the_limit_links_open_on_demand_and_close_when_idle(net, autojump_clock):
    a = net.add(A, max_links=1)
    for node_id in (B, C):
        net.add(node_id, Handlers({Goodbye: done}))
    await net.start(A, B, C)
    a.want(B, [(B, 1)])
    a.want(C, [(C, 1)])
    await wait_all_tasks_blocked()
    assert net.dialled == []
    await a.call(B, Goodbye())
    assert a.connected(B)
    assert not a.connected(C)
    await trio.sleep(IDLE_S * 1.5)
    assert open_connections(a) == (0, 0)
    assert not [event for event in a.events if event[0] == "down"]
    await a.call(B, Goodbye())


async def test_a_dropped_node_is_cut_without_a_word_and_dialled_again(net, autojump_clock):
    a = net.add(A)
    net.add(B)
    await net.start(A, B)
    a.want(B, [(B, 1)])
    await wait_all_tasks_blocked()
    a.drop(B)
    await wait_all_tasks_blocked()
    assert [event[0] for event in a.events].count("down") == 0
    await trio.sleep(1)
    assert a.connected(B)


async def test_an_unwanted_node_is_given_up(net, autojump_clock):
    a = net.add(A)
    net.add(B)
    await net.start(A, B)
    a.want(B, [(B, 1)])
    await wait_all_tasks_blocked()
    a.unwant(B)
    await trio.sleep(10)
    assert open_connections(a) == (0, 0)
    assert len(net.dialled) == 1
    with pytest.raises(NodeUnreachableError, match="not known"):
        await a.call(B, Goodbye())


async def test_a_peer_that_does_not_read_holds_its_callers_back(net, autojump_clock):
    async def renew(_sender, request):
        return Renewed(keys=())

    a = net.add(A)
    net.add(B, Handlers({Renew: renew}))
    await net.start(A, B)
    a.want(B, [(B, 1)])
    await wait_all_tasks_blocked()
    link = a._links[B]
    gate = trio.Event()
    drain = link._connection.secured.stream.drain

    async def blocked():
        await gate.wait()
        await drain()

    link._connection.secured.stream.drain = blocked
    big = Renew(keys=("x" * 100_000,))
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(a.call, B, big)
        await wait_all_tasks_blocked()
        assert link.queued < MAX_QUEUED + 110_000
        gate.set()
    assert link.queued == 0


async def test_a_request_that_never_left_says_so(net, autojump_clock):
    a = net.add(A)
    net.add(B, Handlers({Goodbye: done}))
    await net.start(A, B)
    a.want(B, [(B, 1)])
    await wait_all_tasks_blocked()
    link = a._links[B]

    link._connection.secured.stream.drain = trio.sleep_forever
    caught = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_unwrapped, a.call, B, Goodbye(), caught)
        await wait_all_tasks_blocked()
        nursery.start_soon(_unwrapped, a.call, B, Goodbye(), caught)
        await wait_all_tasks_blocked()
        net.down.add(B)
        a.drop(B)
    assert sorted(error.sent for error in caught) == [False, True]


async def test_too_many_requests_of_one_peer_are_refused(net, autojump_clock):
    async def hang(_sender, _request):
        await trio.sleep(5)
        return Done()

    a = net.add(A)
    net.add(B, Handlers({Goodbye: hang}))
    await net.start(A, B)
    a.want(B, [(B, 1)])
    refused = []
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_INBOUND + 3):
            nursery.start_soon(_unwrapped, a.call, B, Goodbye(), refused)
    assert [error.slug for error in refused] == ["too-many-requests"] * 3


async def test_what_came_before_the_end_of_a_pause_is_as_old_as_the_pause(net, autojump_clock):
    paused_s, served = 0.0, []

    async def serve(sender, _request):
        served.append(sender.node_id)
        return Done()

    async def ask(links, left_s):
        with trio.fail_after(left_s):
            await links.call(B, Goodbye())

    a, c = net.add(A), net.add(C)
    net.add(B, Handlers({Goodbye: serve}), clock=lambda: trio.current_time() + paused_s)
    await net.start(A, B, C)
    a.want(B, [(B, 1)])
    await ask(a, 5)
    paused_s = 20.0
    with pytest.raises(EdgeorchError, match="Goodbye was out of time when it was read") as refused:
        await ask(a, 19)
    assert refused.value.slug == "unavailable"
    assert served == [A]
    await ask(a, 25)
    c.want(B, [(B, 1)])
    await ask(c, 5)
    assert served == [A, A, C], "nothing on a new link is from before the pause"
    await trio.sleep(FRESH_S)
    await ask(a, 5)
    paused_s += LATE_S
    await ask(a, 0.5)
    assert served == [A, A, C, A, A], "a busy machine is not a pause"


async def test_an_answer_that_comes_late_is_ignored(net, autojump_clock):
    async def stubborn(_sender, _request):
        with trio.CancelScope(shield=True):
            await trio.sleep(3)
        return Done()

    a = net.add(A)
    net.add(B, Handlers({Goodbye: stubborn, Renew: lambda *_: _renewed()}))
    await net.start(A, B)
    a.want(B, [(B, 1)])
    with trio.move_on_after(1):
        await a.call(B, Goodbye())
    await trio.sleep(5)
    assert a.statistics()["late_answers"] == 1
    assert await a.call(B, Renew(keys=())) == Renewed(keys=())


async def _renewed():
    return Renewed(keys=())


async def test_a_body_of_the_wrong_shape_costs_one_request(net, monkeypatch):
    a = net.add(A)
    net.add(B, Handlers({Renew: lambda *_: _renewed()}))
    await net.start(A, B)
    a.want(B, [(B, 1)])
    bad = Renew(keys=7)
    with pytest.raises(codec.WireError, match=r"Renew cannot be read.*keys"):
        await a.call(B, bad)
    assert await a.call(B, Renew(keys=())) == Renewed(keys=())


async def test_a_bad_frame_closes_the_link_with_one_line(net, autojump_clock):
    a, b = net.add(A), net.add(B)
    await net.start(A, B)
    a.want(B, [(B, 1)])
    await wait_all_tasks_blocked()
    with structlog.testing.capture_logs() as logs:
        await a._links[B]._connection.secured.stream.send_all(b"\xff\xff\xff\xff")
        await wait_all_tasks_blocked()
    assert [(entry["event"], entry["peer"]) for entry in logs if "bad frame" in entry["event"]] == [
        ("bad frame from a peer, link closed", A)
    ]
    assert [event[0] for event in b.events] == ["hello", "up", "down"]
    await trio.sleep(1)
    assert a.connected(B)


async def test_frames_and_messages_of_a_newer_peer_are_survived(net):
    a = net.add(A)
    net.add(B, Handlers({Renew: lambda *_: _renewed()}))
    await net.start(A, B)
    a.want(B, [(B, 1)])
    await wait_all_tasks_blocked()
    frame = msgspec.msgpack.encode([99, 1, None, "Newer", {"a": [1]}, "extra"])
    await a._links[B]._connection.secured.stream.send_all(len(frame).to_bytes(4, "big") + frame)
    frame = msgspec.msgpack.encode([2, 77, None, "Newer", {"a": [1]}, "extra"])
    await a._links[B]._connection.secured.stream.send_all(len(frame).to_bytes(4, "big") + frame)
    assert await a.call(B, Renew(keys=())) == Renewed(keys=())
    assert a.statistics()["late_answers"] == 1


async def test_stopping_closes_the_links_and_fails_the_calls(net, nursery):
    async def hang(_sender, _request):
        await trio.sleep_forever()

    net.add(B, Handlers({Goodbye: hang}))
    await net.start(B)
    a = net.add(A)
    caught = []
    async with trio.open_nursery() as callers, trio.open_nursery() as inner:
        await inner.start(a.run)
        a.want(B, [(B, 1)])
        callers.start_soon(_unwrapped, a.call, B, Goodbye(), caught)
        await wait_all_tasks_blocked()
        inner.cancel_scope.cancel()
    assert [error.sent for error in caught] == [True]
    await wait_all_tasks_blocked()
    assert not net.links[B].connected(A)


async def test_a_stream_of_a_dropped_node_breaks_off(net, autojump_clock):
    async def one(_sender, _request, outlet):
        await outlet.send(Chunk(stream="stdout", offset=0, data=b"x"))
        await trio.sleep_forever()

    a = net.add(A)
    net.add(B, Handlers(streams={FollowOutput: one}))
    await net.start(A, B)
    a.want(B, [(B, 1)])
    await wait_all_tasks_blocked()
    # In memory, hosts are node ids.
    a._links.pop(B)
    a._diallers[B].state = "up"

    async def follow():
        async with a.stream(B, FollowOutput(caller=Caller(token="t", role="read"), task_id="x")) as messages:
            await anext(messages)
            a.drop(B)
            await anext(messages)

    with pytest.raises(NodeUnreachableError, match="broke off"):
        await follow()


async def test_a_peer_that_hangs_up_at_once_again_and_again_is_not_dialled_in_a_loop(net, autojump_clock):
    a, b = net.add(A), net.add(B)
    b.on_up = lambda _: b._links[A].drain()
    await net.start(A, B)
    a.want(B, [(B, 1)])
    await trio.sleep(5)
    assert len(net.dialled) <= 51


def test_jitter_is_full():
    dialler = Dialler(B, [], dial=None, linked=bool, on_demand=bool, rng=random.Random(1))
    dialler._failures = 20
    pauses = [dialler._pause() for _ in range(1000)]
    assert min(pauses) < 0.5
    assert 9.5 < max(pauses) <= 10


async def test_bytes_are_counted_at_both_ends(net):
    a = net.add(A)
    b = net.add(B, Handlers({Renew: lambda *_: _renewed()}))
    await net.start(A, B)
    a.want(B, [(B, 1)])
    await wait_all_tasks_blocked()
    before = a.statistics(), b.statistics()
    assert await a.call(B, Renew(keys=("k" * 100,))) == Renewed(keys=())
    await wait_all_tasks_blocked()
    sent, received = (
        [end.statistics()[name] - was[name] for end, was in zip((a, b), before, strict=True)]
        for name in ("sent_bytes_total", "received_bytes_total")
    )
    assert sent[0] > 100
    assert sent == received[::-1]
