"""The twin's faults: what vanishes, what breaks, what is told."""

import random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from wire_net import A, B, hello

from edgeorch.errors import NodeUnreachableError
from edgeorch.model import Caller
from edgeorch.testing.wire import Network
from edgeorch.wire import Handlers
from edgeorch.wire.messages import Chunk, Done, FollowOutput, Goodbye

FOLLOW = FollowOutput(caller=Caller(token="t", role="read"), task_id="x")


def network_of(handle, **options):
    network = Network(random.Random(1), **options)
    network.peers(B, Handlers({Goodbye: handle}))
    return network, network.peers(A)


async def done(_sender, _request):
    return Done()


async def hang(_sender, _request):
    await trio.sleep_forever()


async def test_a_partition_is_silent_until_it_heals(autojump_clock):
    network, a = network_of(done)
    network.partition(A, B)
    with trio.move_on_after(60) as scope:
        await a.call(B, Goodbye())
    assert scope.cancelled_caught
    assert a.connected(B)
    network.heal(A, B)
    await a.call(B, Goodbye())


async def test_a_crash_breaks_calls_with_an_unknown_outcome(autojump_clock):
    network, a = network_of(hang)
    caught = []

    async def ask():
        with pytest.raises(NodeUnreachableError) as error:
            await a.call(B, Goodbye())
        caught.append(error.value.sent)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        network.crash(B)
    await ask()
    assert caught == [True, False]
    network.restart(B)
    assert a.connected(B)


async def test_a_crash_breaks_a_stream_off(autojump_clock):
    async def one(_sender, _request, outlet):
        await outlet.send(Chunk(stream="stdout", offset=0, data=b"x"))
        await trio.sleep_forever()

    network, a = network_of(done)
    network.peers(B).handlers.streams[FollowOutput] = one

    async def follow():
        async with a.stream(B, FOLLOW) as messages:
            await anext(messages)
            network.crash(B)
            await anext(messages)

    with pytest.raises(NodeUnreachableError, match="broke off"):
        await follow()


async def test_messages_are_delayed_lost_and_repeated(autojump_clock):
    count = 0

    async def handle(_sender, _request):
        nonlocal count
        count += 1
        return Done()

    network, a = network_of(handle)
    network.delay_s = (0.5, 0.5)
    await a.call(B, Goodbye())
    assert (trio.current_time(), count) == (pytest.approx(1.0), 1)
    network.fault(A, B, duplicate=1.0)
    await a.call(B, Goodbye())
    assert count == 3
    network.fault(B, A, drop=1.0)
    with trio.move_on_after(60) as scope:
        await a.call(B, Goodbye())
    assert scope.cancelled_caught
    assert count == 5


async def test_without_a_mesh_links_follow_what_is_wanted_and_are_told(autojump_clock, nursery):
    network, a = network_of(done, mesh=False)
    events = []
    a.on_hello = lambda sender, said, who: events.append(("hello", sender.node_id, said.info.id, who.node_id))
    a.on_up = lambda node: events.append(("up", node))
    a.on_down = lambda node, _why: events.append(("down", node))
    await nursery.start(a.run)
    with pytest.raises(NodeUnreachableError):
        await a.call(B, Goodbye())
    place = (network.peers(B).hello().info.addresses[0], hello(B).info.wire_port)
    a.want(B, [("10.9.9.9", 1)])
    assert not a.connected(B)
    a.want(B, [place])
    await a.call(B, Goodbye())
    network.crash(B)
    await wait_all_tasks_blocked()
    assert events == [("hello", B, B, B), ("up", B), ("down", B)]
    network.restart(B)
    assert a.connected(B)
    a.unwant(B)
    assert not a.connected(B)
    assert await a.dial_unknown(*place) == B
    assert a.connected(B)


async def test_dialling_in_a_partition_is_slow(autojump_clock):
    network, a = network_of(done, mesh=False)
    network.partition(A, B)
    host = network.peers(B).hello().info.addresses[0]
    with pytest.raises(NodeUnreachableError, match="no answer"):
        await a.dial_unknown(host, 56002)
    assert trio.current_time() == pytest.approx(5)
