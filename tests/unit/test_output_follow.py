import os
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from edgeorch.errors import StorageError
from edgeorch.output import Watcher, follow, streams_of, tails, watcher
from edgeorch.output.follow import CHUNK, _start
from edgeorch.runner.capped import CappedFile


def append(path, data):
    with path.open("ab") as file:
        file.write(data)


async def now(paths, **options):
    async with follow(paths, watcher=Watcher(), **options) as pieces:
        return [piece async for piece in pieces]


@asynccontextmanager
async def following(paths, running, **options):
    ended = trio.Event()
    with trio.fail_after(20):
        async with follow(paths, watcher=running, ended=ended, **options) as pieces:
            yield pieces, ended


@pytest.fixture(params=["inotify", "polling"])
async def running(request, nursery, monkeypatch):
    if request.param == "polling":
        monkeypatch.setattr(watcher._libc, "inotify_init1", lambda flags: -1)
    made = Watcher()
    await nursery.start(made.run)
    return made


async def test_what_is_there_comes_in_pieces_with_offsets(tmp_path):
    paths = streams_of(tmp_path)
    assert await now(paths) == []
    paths["stdout"].write_bytes(b"a" * CHUNK + b"b")
    paths["stderr"].write_bytes(b"e")
    assert await now(paths) == [
        ("stdout", 0, b"a" * CHUNK),
        ("stderr", 0, b"e"),
        ("stdout", CHUNK, b"b"),
    ]
    assert await now({"stdout": paths["stdout"]}, offset=CHUNK) == [("stdout", CHUNK, b"b")]
    assert await now(paths, offset=10**9) == []


async def test_new_output_arrives_until_the_attempt_has_ended(tmp_path, running):
    paths = streams_of(tmp_path)
    paths["stdout"].write_bytes(b"one")
    async with following(paths, running) as (pieces, ended):
        assert await anext(pieces) == ("stdout", 0, b"one")
        append(paths["stdout"], b"two")
        assert await anext(pieces) == ("stdout", 3, b"two")
        append(paths["stderr"], b"oops")  # a file that was not there
        assert await anext(pieces) == ("stderr", 0, b"oops")
        append(paths["stdout"], b"last")
        ended.set()
        assert [piece async for piece in pieces] == [("stdout", 6, b"last")]


async def test_a_follower_wakes_up_when_it_was_already_waiting(tmp_path, running, nursery):
    paths = streams_of(tmp_path)
    got = []

    async def reader(pieces):
        async for piece in pieces:
            got.append(piece)
            seen.set()

    async with following(paths, running) as (pieces, ended), trio.open_nursery() as inner:
        inner.start_soon(reader, pieces)
        for number in range(5):
            await trio.testing.wait_all_tasks_blocked(0.01)
            seen = trio.Event()
            append(paths["stdout"], b"%d" % number)
            await seen.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        ended.set()
    assert b"".join(data for _, _, data in got) == b"01234"


async def test_a_folder_that_appears_later_is_followed(tmp_path, running):
    folder = tmp_path / "later"
    async with following(streams_of(folder), running) as (pieces, _ended), trio.open_nursery() as inner:

        @inner.start_soon
        async def first():
            assert await anext(pieces) == ("stdout", 0, b"here")
            append(folder / "stdout", b"more")
            assert await anext(pieces) == ("stdout", 4, b"more")

        await trio.testing.wait_all_tasks_blocked(0.01)
        folder.mkdir()
        append(folder / "stdout", b"here")


async def test_a_folder_that_goes_ends_nothing_by_itself(tmp_path, running):
    folder = tmp_path / "going"
    folder.mkdir()
    append(folder / "stdout", b"here")
    async with following(streams_of(folder), running) as (pieces, ended):
        await anext(pieces)
        (folder / "stdout").unlink()
        folder.rmdir()
        ended.set()
        assert [piece async for piece in pieces] == []


async def test_followers_of_one_attempt_share_a_watch_and_leave_nothing(tmp_path, nursery):
    shared = Watcher()
    await nursery.start(shared.run)
    paths = streams_of(tmp_path)
    async with following(paths, shared) as (first, _), following(paths, shared) as (second, _):
        assert len(shared._waiting) == 1
        append(paths["stdout"], b"x")
        assert await anext(first) == await anext(second) == ("stdout", 0, b"x")
    assert shared._waiting == {}


async def test_followers_go_on_when_the_watcher_stops(tmp_path):
    shared = Watcher()
    paths = streams_of(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(shared.run)
        async with following(paths, shared) as (pieces, _ended):
            append(paths["stdout"], b"x")
            await anext(pieces)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
                append(paths["stdout"], b"y")
                assert await anext(pieces) == ("stdout", 1, b"y")


async def test_lost_kernel_events_wake_everybody(tmp_path, nursery):
    shared = Watcher()
    with shared.watch(tmp_path) as changes:
        shared._waiting[7] = {changes}
        changes.clear()
        shared._pass_on(watcher._HEADER.pack(-1, 0x4000, 0, 0))
        assert changes._event.is_set()


async def test_the_end_behind_the_cap_comes_once_the_attempt_has_ended(tmp_path, running):
    paths = {"stdout": tmp_path / "stdout"}
    file = CappedFile(paths["stdout"], 4)
    async with following(paths, running) as (pieces, ended):
        file.write(b"headlost and the end")
        head = (await anext(pieces))[2]
        while not head.endswith(b"]\n"):
            head += (await anext(pieces))[2]
        file.write(b"!\n")
        file.close()
        ended.set()
        assert [piece async for piece in pieces] == [("stdout", len(head), b"lost and the end!\n")]
    assert head.startswith(b"head\n[edgeorch: output limit of 4 bytes")
    assert await tails([paths["stdout"]], 5) == [b"end!\n"]
    assert await tails([paths["stdout"]], 1000) == [head + b"lost and the end!\n"]
    assert (await now(paths, tail_lines=1))[0] == ("stdout", len(head), b"lost and the end!\n")


async def test_tails_are_the_last_bytes_or_nothing(tmp_path):
    path = tmp_path / "stdout"
    assert await tails([path], 10) == [b""]
    path.write_bytes(b"0123456789")
    assert await tails([str(path)], 4) == [b"6789"]
    assert await tails([path], 100) == [b"0123456789"]
    assert await tails([path], 0) == [b""]
    (tmp_path / "folder").mkdir()
    assert await tails([tmp_path / "folder", path], 4) == [b"", b"6789"]


async def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "stdout").mkdir()
    with pytest.raises(StorageError, match="stdout"):
        await now({"stdout": tmp_path / "stdout"})


async def test_the_last_lines_and_what_follows(tmp_path, running):
    paths = {"stdout": tmp_path / "stdout"}
    paths["stdout"].write_bytes(b"one\ntwo\nthree\n")
    async with following(paths, running, tail_lines=2) as (pieces, ended):
        assert await anext(pieces) == ("stdout", 4, b"two\nthree\n")
        append(paths["stdout"], b"four\n")
        assert await anext(pieces) == ("stdout", 14, b"four\n")
        ended.set()
    assert await now(paths, tail_lines=2, offset=8) == [("stdout", 8, b"three\nfour\n"[0:11])]


@given(
    st.lists(st.sampled_from([b"\n", b"a", b"bc\n", b"x" * (CHUNK - 1), b"y" * CHUNK]), max_size=6),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_the_start_of_the_last_lines_is_where_splitting_puts_it(tmp_path_factory, pieces, lines, cut):
    path = tmp_path_factory.mktemp("lines") / "stdout"
    whole, end = b"".join(pieces[: len(pieces) - cut]), b"".join(pieces[len(pieces) - cut :])
    path.write_bytes(whole)
    path.with_name("stdout.tail").write_bytes(b"dropped 9\n" + end)
    split = (whole + end).splitlines(keepends=True)
    expected = len(whole + end) - sum(len(line) for line in split[max(len(split) - lines, 0) :])
    assert _start(path, lines, final=True) == expected


def test_descriptors_are_not_inherited(tmp_path):
    async def check():
        shared = Watcher()
        async with trio.open_nursery() as nursery:
            await nursery.start(shared.run)
            assert not os.get_inheritable(shared._fd)
            nursery.cancel_scope.cancel()

    trio.run(check)
