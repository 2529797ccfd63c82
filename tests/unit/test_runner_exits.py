"""The file that keeps how attempts ended."""

import errno
import os

import pytest

from edgeorch.runner import exits as module
from edgeorch.runner.exits import Exits
from edgeorch.runner.protocol import Ended

ONE, TWO = Ended(exit_code=1, cause="failed"), Ended(signal=9, cause="failed", reason="killed by SIGKILL")


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".exits"


def loaded(path):
    exits = Exits(str(path))
    exits.load()
    return exits


def test_what_is_not_forgotten_is_known_after_a_restart(path):
    exits = loaded(path)
    assert not path.exists()
    exits.keep("a.1", ONE)
    exits.keep("a.2", TWO)
    exits.write()
    exits.drop("a.1")
    exits.write()
    assert exits.known == loaded(path).known == {"a.2": TWO}
    again = loaded(path)
    again.keep("a.3", ONE)
    again.write()
    assert loaded(path).known == {"a.2": TWO, "a.3": ONE}


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_that_was_cut_costs_that_line_only(path, cut):
    exits = loaded(path)
    for key in ("a.1", "a.2"):
        exits.keep(key, ONE)
        exits.write()
    os.truncate(path, path.stat().st_size - cut)
    exits = loaded(path)
    exits.keep("a.3", TWO)
    exits.write()
    left = {"a.1": ONE, "a.3": TWO} | ({"a.2": ONE} if cut == 1 else {})
    assert loaded(path).known == left


def test_nonsense_is_skipped(path):
    path.write_bytes(b'\xff\n[]\n{"key":1}\n{"key":"a.1","ended":[]}\n' + b"[" * 100_000 + b"\n")
    assert loaded(path).known == {}


def test_the_file_is_bounded_by_what_is_known(path, monkeypatch):
    monkeypatch.setattr(module, "SPARE", 1000)
    exits = loaded(path)
    exits.keep("first.1", TWO)
    for number in range(200):
        exits.keep(f"a.{number}", ONE)
        exits.write()
        exits.drop(f"a.{number}")
        exits.write()
        assert path.stat().st_size < 1500
    assert loaded(path).known == {"first.1": TWO}
    assert [each.name for each in path.parent.iterdir()] == [".exits"]


@pytest.mark.parametrize("short", [False, True])
def test_what_a_full_disk_did_not_take_is_written_later(path, monkeypatch, short):
    exits, real = loaded(path), os.write
    exits.keep("a.1", ONE)
    exits.write()

    def write(fd, data):
        if short:
            return real(fd, data[:10])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", write)
    exits.keep("a.2", TWO)
    exits.write()
    assert loaded(path).known == {"a.1": ONE}
    monkeypatch.setattr(os, "write", real)
    exits.keep("a.3", ONE)
    exits.write()
    assert loaded(path).known == {"a.1": ONE, "a.2": TWO, "a.3": ONE}
    assert [each.name for each in path.parent.iterdir()] == [".exits"]
