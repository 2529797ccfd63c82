"""Other systems in processes of their own, from ``peers/`` and the environment of ``make bench-peers``.

Each runs in a session of its own, so that whatever it starts can be found and ended by its id.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"
PATIENCE_S = 120.0
STOP_S = 20.0


class UnavailableError(Exception):
    """It cannot be started here; says why."""


class System:
    """One other system, its servers and its own client.

    Args:
        script: ``peers/with_SCRIPT.py``.
        folder: for its state, its log and whatever it keeps at home; is made.
        more: arguments of the script.

    Raises:
        UnavailableError: it did not come up.
    """

    def __init__(self, script: str, folder: Path, *more: str) -> None:
        folder.mkdir()
        self._log = folder / "log"
        argv: list[str | Path] = [PYTHON, HERE / "peers" / f"with_{script}.py", folder, *more]
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, "HOME": str(folder)},
                    start_new_session=True,
                )
        except FileNotFoundError:
            raise UnavailableError(f"there is no {PYTHON}: run make bench-peers") from None
        try:
            self.versions: dict[str, str] = self._answer()["versions"]
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def turn(self, kind: str, tasks: int) -> float:
        """Let it run so many tasks: median milliseconds, or tasks a second."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"turn": kind, "tasks": tasks}) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["value"])

    def stop(self) -> None:
        """Let it stop its servers; end what is left of its session."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        end = time.monotonic() + STOP_S
        while (left := _session(self._process.pid)) and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(0.05)
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
        line = self._process.stdout.readline() if ready else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        said = self._log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise UnavailableError(
            said[-1] if ready else f"no answer in {PATIENCE_S:g} s; it said last: {said[-1]}"
        )


def _session(leader: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state not in "ZX":
                    found.append(int(entry.name))
    return found
