import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeorch.runner.capped import CappedFile, read_tail

MARKER = b"\n[edgeorch: output limit of 10 bytes reached, the rest was dropped except its end]\n"


def written(path, *pieces, **options):
    file = CappedFile(path, options.pop("max_bytes", 10), **options)
    for piece in pieces:
        file.write(piece)
    file.close()
    return file


def test_output_below_the_cap_is_kept_as_it_is(tmp_path):
    path = tmp_path / "stdout"
    file = written(path, b"hello", b"", b"world")
    assert path.read_bytes() == b"helloworld"
    assert not (tmp_path / "stdout.tail").exists()
    assert (file.kept, file.dropped, file.received) == (10, 0, 10)
    assert read_tail(path) == (0, b"")
    assert path.stat().st_mode & 0o777 == 0o640


def test_beyond_the_cap_a_marker_and_the_end_are_kept(tmp_path):
    path = tmp_path / "stdout"
    file = written(path, b"12345678", b"90abc", b"def", tail_bytes=4)
    assert path.read_bytes() == b"1234567890" + MARKER
    assert read_tail(path) == (6, b"cdef")
    assert (file.kept, file.dropped) == (10, 6)


@given(
    st.lists(st.binary(max_size=30), max_size=12), st.integers(1, 40), st.integers(0, 8), st.integers(0, 12)
)
def test_head_and_end_are_right_for_any_pieces_and_any_restart(tmp_path_factory, pieces, cap, tail, restart):
    path = tmp_path_factory.mktemp("capped") / "stdout"
    written(path, *pieces[:restart], max_bytes=cap, tail_bytes=tail)
    file = written(path, *pieces[restart:], max_bytes=cap, tail_bytes=tail, resume=True)
    whole = b"".join(pieces)
    lost = whole[cap:]
    assert path.read_bytes()[:cap] == whole[:cap]
    assert path.read_bytes().count(b"[edgeorch: output limit") == bool(lost)
    assert (file.kept, file.dropped) == (min(len(whole), cap), len(lost))
    assert read_tail(path) == (len(lost), lost[-tail:] if tail else b"")


def test_a_new_writer_does_not_inherit_an_old_end(tmp_path):
    path = tmp_path / "stdout"
    written(path, b"x" * 20)
    written(path, b"new")
    assert path.read_bytes() == b"new"
    assert read_tail(path) == (0, b"")


def test_a_writer_that_was_killed_after_the_cap_is_taken_up(tmp_path):
    path = tmp_path / "stdout"
    CappedFile(path, 10).write(b"x" * 20)  # never closed
    file = written(path, b"later", resume=True)
    assert path.read_bytes() == b"x" * 10 + MARKER
    assert file.kept == 10
    assert read_tail(path)[1] == b"later"


@pytest.mark.parametrize(
    ("number", "why"), [(errno.ENOSPC, "disk full"), (errno.EIO, "disk error: Input/output")]
)
def test_a_failing_disk_ends_the_kept_part_and_never_the_writer(tmp_path, monkeypatch, number, why):
    path, real, broken = tmp_path / "stdout", os.write, True

    def write(fd, data):
        if broken:
            raise OSError(number, os.strerror(number))
        return real(fd, data)

    file = CappedFile(path, 100)
    file.write(b"before ")
    monkeypatch.setattr(os, "write", write)
    file.write(b"lost")
    file.write(b" and more")
    assert path.read_bytes() == b"before "
    broken = False
    file.write(b", end")
    file.close()
    file.close()
    assert path.read_bytes().startswith(b"before \n[edgeorch: " + why.encode())
    assert read_tail(path) == (18, b"lost and more, end")


def test_a_lazy_file_is_made_by_its_first_byte(tmp_path):
    path = tmp_path / "stdout"
    written(path, b"", lazy=True)
    assert not path.exists()
    written(path, b"12345678", b"90abc", lazy=True)
    assert path.read_bytes() == b"1234567890" + MARKER
    assert read_tail(path) == (3, b"abc")
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_lazy_file_that_cannot_be_made_is_a_failing_disk(tmp_path):
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "stdout").symlink_to(tmp_path / "target")
    file = written(tmp_path / "stdout", b"lost", lazy=True)
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert (file.kept, file.dropped) == (0, 4)
    assert read_tail(tmp_path / "stdout") == (4, b"lost")


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path):
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "stdout").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic"):
        CappedFile(tmp_path / "stdout", 10)
    assert (tmp_path / "target").read_bytes() == b"precious"
