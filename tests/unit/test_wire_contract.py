"""What ``Peers`` promises, over real links and over the shipped twin."""

import pytest
import structlog.testing
import trio
from wire_net import A, B, open_pair

from edgeorch.errors import (
    ConflictError,
    EdgeorchError,
    NodeUnreachableError,
    UnsupportedMessageError,
    WireError,
)
from edgeorch.model import AttemptState, Caller
from edgeorch.wire import Handlers
from edgeorch.wire.frames import MAX_FRAME
from edgeorch.wire.messages import (
    Chunk,
    Done,
    FindRuns,
    FollowOutput,
    Goodbye,
    OutputEnd,
    Renew,
    Renewed,
    Runs,
    RunState,
)

CALLER = Caller(token="t", role="admin")
FOLLOW = FollowOutput(caller=CALLER, task_id="x")

pytestmark = pytest.mark.parametrize("kind", ["links", "twin"])


async def echo(_sender, request):
    return Renewed(keys=request.keys)


async def test_a_call_is_answered_with_the_sender_named(kind):
    senders = []

    async def renew(sender, request):
        senders.append(sender)
        return Renewed(keys=request.keys[:1])

    async with open_pair(kind, Handlers({Renew: renew})) as peers:
        assert await peers.call(B, Renew(keys=("x", "y"))) == Renewed(keys=("x",))
        assert peers.connected(B)
        assert peers.statistics()["calls"] == 1
    assert (senders[0].node_id, senders[0].name) == (A, "name-a")


async def test_every_field_survives(kind):
    state = RunState(key="k", state=AttemptState.RUNNING, stdout_tail=b"\xff\0", progress="é")

    async def find(_sender, request):
        return Runs(runs=(state,))

    async with open_pair(kind, Handlers({FindRuns: find})) as peers:
        assert (await peers.call(B, FindRuns(task_ids=()))).runs == (state,)


async def test_many_calls_at_once_get_their_own_answers(kind, autojump_clock):
    async def slow(_sender, request):
        await trio.sleep(10 - int(request.keys[0]) % 7)
        return Renewed(keys=request.keys)

    answers = {}

    async def ask(peers, number):
        answers[number] = await peers.call(B, Renew(keys=(str(number),)))

    async with open_pair(kind, Handlers({Renew: slow})) as peers, trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(ask, peers, number)
    assert {n: int(a.keys[0]) for n, a in answers.items()} == {n: n for n in range(100)}


async def test_an_expected_error_arrives_as_its_own_class(kind):
    async def refuse(_sender, _request):
        raise ConflictError("already draining", hint="wait")

    async with open_pair(kind, Handlers({Renew: refuse})) as peers:
        with pytest.raises(ConflictError) as caught:
            await peers.call(B, Renew(keys=()))
    assert (caught.value.detail, caught.value.hint) == ("already draining", "wait")


async def test_a_defect_in_a_handler_is_logged_and_costs_one_request(kind):
    async def broken(_sender, _request):
        raise ZeroDivisionError

    async def goodbye(_sender, _request):
        return Done()

    async with open_pair(kind, Handlers({Renew: broken, Goodbye: goodbye})) as peers:
        with structlog.testing.capture_logs() as logs, pytest.raises(EdgeorchError, match="its log says why"):
            await peers.call(B, Renew(keys=()))
        assert [entry["request"] for entry in logs if entry.get("exc_info")] == ["Renew"]
        assert await peers.call(B, Goodbye()) == Done()


async def test_an_instant_answer_fails_as_any_other_does(kind):
    def renew(sender, request):
        if request.keys == ("x",):
            raise ConflictError("busy", hint="wait")
        if request.keys == ("y",):
            raise ZeroDivisionError
        return Renewed(keys=(sender.node_id, *request.keys))

    async with open_pair(kind, Handlers(instant={Renew: renew})) as peers:
        assert await peers.call(B, Renew(keys=("z",))) == Renewed(keys=(A, "z"))
        with pytest.raises(ConflictError, match="busy"):
            await peers.call(B, Renew(keys=("x",)))
        with structlog.testing.capture_logs() as logs, pytest.raises(EdgeorchError, match="Renew failed"):
            await peers.call(B, Renew(keys=("y",)))
        assert [line["request"] for line in logs] == ["Renew"]
        assert await peers.call(B, Renew(keys=())) == Renewed(keys=(A,))


async def test_a_request_nobody_handles_is_unsupported(kind):
    async with open_pair(kind, Handlers()) as peers:
        with pytest.raises(UnsupportedMessageError, match="Renew"):
            await peers.call(B, Renew(keys=()))
        assert peers.connected(B)


async def test_an_unknown_node_was_certainly_not_asked(kind):
    async with open_pair(kind, Handlers()) as peers:
        with pytest.raises(NodeUnreachableError) as caught:
            await peers.call("zzzzzzzzzz", Renew(keys=()))
    assert caught.value.sent is False


async def test_a_cancelled_call_cancels_its_handler_and_leaves_the_link(kind, autojump_clock):
    started, ended = trio.Event(), trio.Event()

    async def hang(_sender, _request):
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async def goodbye(_sender, _request):
        return Done()

    async with open_pair(kind, Handlers({Renew: hang, Goodbye: goodbye})) as peers:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peers.call, B, Renew(keys=()))
            await started.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(1):
            await ended.wait()
        assert await peers.call(B, Goodbye()) == Done()


async def test_the_callers_deadline_bounds_the_handler(kind, autojump_clock):
    times = []

    async def hang(_sender, _request):
        times.append(trio.current_effective_deadline() - trio.current_time())
        await trio.sleep_forever()

    async with open_pair(kind, Handlers({Renew: hang})) as peers:
        with pytest.raises(trio.TooSlowError), trio.fail_after(5):
            await peers.call(B, Renew(keys=()))
    assert times == [pytest.approx(5)]


async def test_a_message_over_the_frame_size_is_an_error_in_either_direction(kind):
    async def grow(_sender, _request):
        return Renewed(keys=("x" * MAX_FRAME,))

    async with open_pair(kind, Handlers({Renew: grow})) as peers:
        with pytest.raises(WireError, match="bytes"):
            await peers.call(B, Renew(keys=("x" * MAX_FRAME,)))
        with pytest.raises(WireError, match="bytes"):
            await peers.call(B, Renew(keys=()))
        assert peers.connected(B)


async def output(_sender, _request, sender):
    for offset in range(3):
        await sender.send(Chunk(stream="stdout", offset=offset, data=b"x"))
    await sender.send(OutputEnd(why="ended"))


async def follow(peers, got):
    async with peers.stream(B, FOLLOW) as messages:
        async for message in messages:
            got.append(message)


async def test_a_stream_gives_all_messages_in_order_and_ends(kind):
    async with (
        open_pair(kind, Handlers(streams={FollowOutput: output})) as peers,
        peers.stream(B, FOLLOW) as messages,
    ):
        got = [message async for message in messages]
    assert [message.offset for message in got[:-1]] == [0, 1, 2]
    assert got[-1] == OutputEnd(why="ended")


async def test_a_stream_that_fails_raises_after_what_it_sent(kind):
    async def half(sender, request, outlet):
        await outlet.send(Chunk(stream="stdout", offset=0, data=b"x"))
        raise ConflictError("no more")

    got = []
    async with open_pair(kind, Handlers(streams={FollowOutput: half})) as peers:
        with pytest.raises(ConflictError):
            await follow(peers, got)
    assert len(got) == 1


async def test_a_stream_nobody_handles_is_unsupported(kind):
    async with open_pair(kind, Handlers()) as peers:
        with pytest.raises(UnsupportedMessageError):
            await follow(peers, [])


async def test_leaving_a_stream_stops_a_handler_that_has_nothing_to_send(kind, autojump_clock):
    ended = trio.Event()

    async def wait(sender, request, outlet):
        await outlet.send(Chunk(stream="stdout", offset=0, data=b"x"))
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with open_pair(kind, Handlers(streams={FollowOutput: wait})) as peers:
        async with peers.stream(B, FOLLOW) as messages:
            await anext(aiter(messages))
        with trio.fail_after(1):
            await ended.wait()


async def test_an_error_in_the_body_of_a_stream_comes_out_as_it_is(kind):
    async with open_pair(kind, Handlers(streams={FollowOutput: output})) as peers:
        with pytest.raises(KeyError):
            async with peers.stream(B, FOLLOW):
                raise KeyError
