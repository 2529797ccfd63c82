"""What systemd and the journal are told, read at the other end of the socket."""

import os
import socket
import struct
import time

import pytest
import trio

from edgeorch import systemd
from edgeorch.systemd import Journal, Notify


@pytest.fixture
def listening():
    """Make a datagram socket at a path or an abstract name."""
    made = []

    def listen(address):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        made.append(sock)
        sock.bind(address)
        return sock

    yield listen
    for sock in made:
        sock.close()


@pytest.fixture
def journal(tmp_path, listening):
    """A journal that writes to the socket that comes with it."""
    sock = listening(str(tmp_path / "journal"))
    made = Journal(tmp_path / "journal")
    with made._socket:
        yield made, sock


def heard(sock):
    """Every datagram that has arrived."""
    found = []
    while True:
        try:
            found.append(sock.recv(1 << 20))
        except BlockingIOError:
            return found


@pytest.fixture(params=["path", "abstract"])
def systemd_at(request, tmp_path, listening):
    if request.param == "path":
        return str(tmp_path / "notify"), listening(str(tmp_path / "notify"))
    name = f"edgeorch-test-{os.getpid()}-{os.urandom(4).hex()}"
    return f"@{name}", listening(f"\0{name}")


def test_readiness_and_stop(systemd_at):
    address, sock = systemd_at
    notify = Notify({"NOTIFY_SOCKET": address})
    notify.ready()
    notify.stopping("three tasks\nMAINPID=1")
    assert heard(sock) == [b"READY=1", b"STOPPING=1\nSTATUS=three tasks MAINPID=1"]


def test_the_status_is_told_when_it_changes(systemd_at):
    address, sock = systemd_at
    notify = Notify({"NOTIFY_SOCKET": address})
    for text in ("fine", "fine", "worse\nREADY=1", "worse\nREADY=1", "fine \udc80"):
        notify.status(text)
    assert heard(sock) == [b"STATUS=fine", b"STATUS=worse READY=1", b"STATUS=fine ?"]


def test_a_status_that_was_not_taken_is_told_again(tmp_path, listening):
    address = str(tmp_path / "notify")
    notify = Notify({"NOTIFY_SOCKET": address})
    notify.status("fine")
    sock = listening(address)
    notify.status("fine")
    assert heard(sock) == [b"STATUS=fine"]


async def test_without_systemd_nothing_is_asked_or_told(nursery, autojump_clock):
    notify = Notify({})
    assert not notify.send("READY=1")
    await nursery.start(notify.run, lambda: pytest.fail("nobody reads it"))
    await trio.sleep(10)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("env", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_is_meant_for_this_process(env, seconds):
    assert Notify(env).watchdog_s == seconds


async def test_the_watchdog_hears_from_the_loop_four_times_a_period(systemd_at, nursery, autojump_clock):
    address, sock = systemd_at
    notify = Notify({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1500000"})
    turns = iter(range(1000))
    await nursery.start(notify.run, lambda: f"turn {next(turns) // 4}")
    await trio.sleep(1.9)
    nursery.cancel_scope.cancel()
    beats, told = b"WATCHDOG=1", heard(sock)
    assert told == [b"STATUS=turn 0", *[beats] * 4, b"STATUS=turn 1", *[beats] * 2]


async def test_a_long_watchdog_costs_no_beat_a_second(systemd_at, nursery, autojump_clock):
    address, sock = systemd_at
    notify = Notify({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "60000000"})
    await nursery.start(notify.run, lambda: "fine")
    await trio.sleep(59)
    nursery.cancel_scope.cancel()
    assert heard(sock) == [b"STATUS=fine", *[b"WATCHDOG=1"] * 4]


def test_a_reload_is_told_with_its_time(systemd_at):
    address, sock = systemd_at
    Notify({"NOTIFY_SOCKET": address}).reloading()
    reloading, usec = heard(sock)[0].split(b"\n")
    assert reloading == b"RELOADING=1"
    assert int(usec.removeprefix(b"MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


async def test_the_status_stays_fresh_without_a_watchdog(systemd_at, nursery, autojump_clock):
    address, sock = systemd_at
    words = iter(["one", "one", "two", "two"])
    await nursery.start(Notify({"NOTIFY_SOCKET": address}).run, lambda: next(words))
    await trio.sleep(3.5)
    nursery.cancel_scope.cancel()
    assert heard(sock) == [b"STATUS=one", b"STATUS=two"]


def decoded(datagram):
    """Fields of a record: ``KEY=VALUE`` lines, or KEY, 64-bit little-endian length, bytes."""
    fields = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        key, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", rest)
            value, end, rest = rest[8 : 8 + length], rest[8 + length : 9 + length], rest[9 + length :]
            assert end == b"\n"
        fields[key.decode("ascii")] = value.decode()
        datagram = rest
    return fields


def test_a_record_keeps_its_fields_whatever_is_in_them(journal):
    writer, sock = journal
    fields = {
        "task": "01j-abc",
        "reason": "first\nsecond=2\n",
        "straße-1": "größe",
        "x" * 80: 1,
        "bytes": "\udc80",
        "none": None,
    }
    writer.write(4, "message\nof two lines", fields)
    (record,) = heard(sock)
    assert decoded(record) == {
        "MESSAGE": "message\nof two lines",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "edgeorch",
        "EDGEORCH_TASK": "01j-abc",
        "EDGEORCH_REASON": "first\nsecond=2\n",
        "EDGEORCH_STRASSE_1": "größe",
        "EDGEORCH_" + "X" * 55: "1",
        "EDGEORCH_BYTES": "?",
        "EDGEORCH_NONE": "None",
    }


def test_a_record_that_is_too_long_is_cut(journal):
    writer, sock = journal
    writer.write(3, "x" * (1 << 24), {"task": "y"})
    (record,) = heard(sock)
    assert decoded(record)["MESSAGE"] == "x" * systemd.SHORT


def test_a_journal_that_is_stuck_or_gone_stops_nobody(journal):
    writer, sock = journal
    writer._socket.settimeout(0.0005)
    # Far more than any queue of datagrams holds, and nobody reads.
    for _ in range(600):
        writer.write(6, "x" * 1000, {})
    assert 0 < len(heard(sock)) < 600
    sock.close()
    writer._stuck_until = 0
    writer.write(6, "nobody listens", {})


def test_a_stuck_journal_is_waited_for_once_a_second(journal):
    writer, sock = journal
    writer._socket.settimeout(0.0005)
    while writer._stuck_until < 0:
        writer.write(6, "x" * 1000, {})
    heard(sock)
    writer.write(6, "too soon", {})
    assert heard(sock) == []
    writer._stuck_until = time.monotonic()
    writer.write(6, "again", {})
    assert [decoded(line)["MESSAGE"] for line in heard(sock)] == ["again"]


def test_a_busy_journal_is_waited_for_but_not_for_long(journal):
    writer, _ = journal
    assert writer._socket.gettimeout() == systemd.JOURNAL_WAIT_S


def test_whether_stderr_is_the_journal(monkeypatch, tmp_path):
    monkeypatch.setattr(systemd, "JOURNAL", tmp_path)
    stat = os.fstat(2)
    assert Journal.here({"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"})
    for other in (f"{stat.st_dev}:{stat.st_ino + 1}", "", "1", "a:b"):
        assert not Journal.here({"JOURNAL_STREAM": other})
    monkeypatch.setattr(systemd, "JOURNAL", tmp_path / "none")
    assert not Journal.here({"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"})
