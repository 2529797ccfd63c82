"""What ends up on stderr, seen from outside: the settings are the process's."""

import json
import os
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
from edgeorch import logs
from edgeorch.config import Log
logs.set_up(Log(format=sys.argv[1]))
library = logging.getLogger("somebody")
library.info("chatter")
try:
    token = "do not show this"
    raise OSError(101, "Network is unreachable")
except OSError as error:
    library.warning("cannot send: %s", error, exc_info=True)
    library.error("worse", exc_info=True)
"""


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_library_warns_in_one_line(kind):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, timeout=30, check=True
    )
    assert "do not show" not in done.stderr.replace('token = "do not show this"', "")
    first, second, *rest = done.stderr.splitlines()
    assert ("cannot send: [Errno 101] Network is unreachable" in first, "worse" in second) == (True, True)
    if kind == "json":
        assert json.loads(first)["library"] == "somebody"
        assert "Traceback" in json.loads(second)["exception"]
    else:
        assert "library=somebody" in first
        assert rest[0].startswith("Traceback")


OURS = """
import sys
import structlog
from edgeorch import logs
from edgeorch.config import Log
print(logs.set_up(Log(format=sys.argv[1], level=sys.argv[2])))
log = structlog.get_logger().bind(task="01j")
log.debug("small", n=1)
log.info("first\\nline", n=2, raw=b"\\xff")
log.warning("second", error=OSError("no"))
try:
    {}["key"]
except KeyError:
    log.exception("third")
"""


def run(program, *args, **how):
    how = {"stderr": subprocess.PIPE, **how}
    return subprocess.run(
        [sys.executable, "-c", program, *args],
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
        **how,
    )


def test_json_is_one_object_a_line_from_the_level_on():
    done = run(OURS, "json", "warning")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert (done.returncode, done.stdout, len(lines)) == (0, "json\n", 2)
    assert [line["level"] for line in lines] == ["warning", "error"]
    assert all(line["task"] == "01j" and line["timestamp"].endswith("Z") for line in lines)
    assert lines[-1]["exception"].endswith("KeyError: 'key'")


def test_auto_is_text_outside_of_systemd():
    env = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
    done = run(OURS, "auto", "info", env=env)
    assert (done.stdout, "\x1b" in done.stderr) == ("text\n", False)
    assert [word in done.stderr for word in ("small", "first", "second", "third")] == [False, *[True] * 3]
    assert done.stderr.endswith("KeyError: 'key'\n")


def test_the_journal_gets_priority_fields_and_traceback(tmp_path):
    program = (
        """
import sys
from pathlib import Path
from edgeorch import logs
from edgeorch.systemd import Journal
class Here(Journal):
    def __init__(self):
        super().__init__(Path(sys.argv[3]))
    @staticmethod
    def here():
        return True
logs.Journal = Here
"""
        + OURS
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "journal"))
        sock.settimeout(30)
        done = run(program, "auto", "info", str(tmp_path / "journal"))
        assert (done.returncode, done.stdout, done.stderr) == (0, "journal\n", "")
        records = [sock.recv(1 << 16) for _ in range(3)]
    for priority, record in zip((6, 4, 3), records, strict=True):
        assert b"\nPRIORITY=%d\n" % priority in record
    assert all(b"\nEDGEORCH_TASK=01j\n" in record for record in records)
    assert b"\nEDGEORCH_N=2\n" in records[0]
    assert b"second task=01j error=" in records[1]
    assert b"Traceback" in records[2]
    assert b"EDGEORCH_EXCEPTION" not in records[2]


def test_nobody_who_reads_is_no_reason_to_stop():
    read, write = os.pipe()
    os.close(read)
    done = run(OURS + "print('alive', flush=True)\n", "text", "debug", stderr=write)
    os.close(write)
    assert done.stdout.splitlines() == ["text", "alive"]


STORY = """
import sys
import structlog
from edgeorch import logs
from edgeorch.config import Log
logs.set_up(Log(format="json"))
log = structlog.get_logger()
for number in range(5):
    log.info("taking up", key=f"01j-abc.{number}", n=number)
log.warning("trouble", task="01j-abc")
log.info("ended", task="01j-abc")
log.info("accepted", task="01j-other")
log.info("opened", key="no.attempt")
log.debug("hidden")
logs.set_level("debug")
log.debug("seen")
"""


def test_four_lines_of_info_a_task_the_last_for_its_end():
    lines = [json.loads(line) for line in run(STORY).stderr.splitlines()]
    said = [(line["event"], line.get("task"), line.get("attempt")) for line in lines]
    assert said == [
        *(("taking up", "01j-abc", number) for number in range(3)),
        ("trouble", "01j-abc", None),
        ("ended", "01j-abc", None),
        ("accepted", "01j-other", None),
        ("opened", None, None),
        ("seen", None, None),
    ]
