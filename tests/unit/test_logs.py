"""What ends up on stderr, seen from outside: the settings are the process's."""

import json
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
