"""Folders that later attempts get: only those in which nothing has changed."""

import fcntl
import os
import struct

import pytest

from edgeorch.runner import spares
from edgeorch.runner.spares import Spares

_SET_FLAGS = 1 << 30 | struct.calcsize("l") << 16 | ord("f") << 8 | 2
_NO_DUMP = 0x40


def made(path):
    (path / "work").mkdir(parents=True)
    return str(path)


def no_dump(folder):
    fd = os.open(folder, os.O_RDONLY)
    try:
        flags = fcntl.ioctl(fd, spares._GET_FLAGS, bytes(struct.calcsize("l")))
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("L", struct.unpack("L", flags)[0] | _NO_DUMP))
    finally:
        os.close(fd)


def replaced(folder):
    (folder / "work").rmdir()
    (folder / "work").symlink_to("/")


CHANGES = {
    "a file": lambda folder: (folder / "work/left").touch(),
    "output": lambda folder: (folder / "stdout").touch(),
    "its mode": lambda folder: (folder / "work").chmod(0o777),
    "the mode of the folder above": lambda folder: folder.chmod(0o777),
    "no access": lambda folder: (folder / "work").chmod(0o000),
    "an attribute": lambda folder: os.setxattr(folder / "work", "user.left", b"x"),
    "a flag": lambda folder: no_dump(folder / "work"),
    "a link in its place": replaced,
    "nothing in its place": lambda folder: (folder / "work").rmdir(),
    "its size": lambda folder: grown(folder / "work"),
}


def grown(folder):
    size = folder.stat().st_size
    paths = [folder / f"{number:0200d}" for number in range(100)]
    for path in paths:
        path.touch()
    for path in paths:
        path.unlink()
    if folder.stat().st_size == size:
        pytest.skip("folders of this file system shrink again")


@pytest.fixture
def kept(tmp_path):
    """Spares that have proved to work on this file system."""
    found = Spares(str(tmp_path / ".spare"))
    if not found.put(made(tmp_path / "first")):
        pytest.skip("this file system tells no flags of folders")
    assert found.take(str(tmp_path / "first"))
    return found


def test_a_folder_that_is_as_it_was_is_used_again(kept, tmp_path):
    inode = (tmp_path / "first/work").stat().st_ino
    assert kept.put(str(tmp_path / "first"))
    assert not (tmp_path / "first").exists()
    assert kept.take(str(tmp_path / "second"))
    assert (tmp_path / "second/work").stat().st_ino == inode
    assert [path.name for path in (tmp_path / "second").iterdir()] == ["work"]
    assert not kept.take(str(tmp_path / "third"))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_one_that_has_changed_is_not(kept, tmp_path, change):
    if change is CHANGES["an attribute"]:
        try:
            os.setxattr(tmp_path, "user.any", b"x")
        except OSError:
            pytest.skip("no attributes on this file system")
    if change is CHANGES["no access"] and os.geteuid() == 0:
        pytest.skip("root has access all the same")
    change(tmp_path / "first")
    assert not kept.put(str(tmp_path / "first"))
    assert (tmp_path / "first").exists()
    assert not kept.take(str(tmp_path / "second"))


def test_only_so_many_are_kept(kept, tmp_path):
    folders = [made(tmp_path / str(number)) for number in range(spares.MOST + 1)]
    assert [kept.put(folder) for folder in folders] == [True] * spares.MOST + [False]


def test_none_is_put_where_something_is(kept, tmp_path):
    assert kept.put(str(tmp_path / "first"))
    (tmp_path / "second").mkdir()
    (tmp_path / "second/stdout").touch()
    assert not kept.take(str(tmp_path / "second"))


def test_those_of_an_earlier_runner_are_not_used(kept, tmp_path):
    assert kept.put(str(tmp_path / "first"))
    later = Spares(str(tmp_path / ".spare"))
    later.clear()
    assert not (tmp_path / ".spare").exists()
    assert not later.take(str(tmp_path / "second"))
    assert later.put(made(tmp_path / "third"))


def test_where_something_else_is_in_the_way_there_are_none(tmp_path):
    (tmp_path / ".spare").mkdir()
    (tmp_path / ".spare/foreign").touch()
    later = Spares(str(tmp_path / ".spare"))
    later.clear()
    assert not later.put(made(tmp_path / "first"))
    assert (tmp_path / ".spare/foreign").exists()
