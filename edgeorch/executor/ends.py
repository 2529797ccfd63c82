"""Ends of other nodes' attempts: written a moment later, many in one transaction, when nobody waits for them.

What an attempt came to is safe meanwhile. Its driver keeps the exit until the attempt is destroyed, which
waits for the record: a node that starts after a crash finds the end there and tells it again, and an origin
that has it already changes nothing. What the driver could not tell again is written at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import structlog
import trio

from edgeorch.errors import StorageError
from edgeorch.seams import Seams
from edgeorch.store import AttemptStore, EndRun, PutRun

log = structlog.get_logger()

MOMENT_S = 0.1
"""Most origins have an end long before; of one that has not, the target keeps it from then on."""
MAX_BACKOFF_S = 30.0


@dataclass(eq=False, slots=True)
class _Line:
    """What is known last of one run, and who waits until it is on disk."""

    change: PutRun | EndRun
    written: trio.Event = field(default_factory=trio.Event)


class Ends:
    """Records to be written, the newest of each run.

    Args:
        store: where they go.
        seams: chance.
    """

    def __init__(self, store: AttemptStore, seams: Seams) -> None:
        self._store = store
        self._seams = seams
        self._lines: dict[str, _Line] = {}
        self._work = trio.Event()
        self._hurry = trio.Event()

    def put(self, change: PutRun | EndRun, *, at_once: bool = False) -> trio.Event:
        """Write this soon, in place of what was to be written of the same run; set when it is on disk."""
        line = self._lines[change.run.offer.key] = _Line(change)
        self._work.set()
        if at_once:
            self._hurry.set()
        return line.written

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Write what there is, and go on trying while the disk is full: a result must not be forgotten."""
        task_status.started()
        wait_s = 0.5
        while True:
            await self._work.wait()
            with trio.move_on_after(MOMENT_S):
                await self._hurry.wait()
            self._work, self._hurry = trio.Event(), trio.Event()
            lines, self._lines = self._lines, {}
            left = await self._write(list(lines.values()))
            if left:
                # Behind what was put meanwhile, which is newer.
                self._lines = {line.change.run.offer.key: line for line in left} | self._lines
                self._work.set()
                await trio.sleep(wait_s * self._seams.rng.uniform(0.5, 1.0))
                wait_s = min(wait_s * 2, MAX_BACKOFF_S)
            else:
                wait_s = 0.5

    async def _write(self, lines: Sequence[_Line]) -> list[_Line]:
        """Write them together; where that fails each by itself. Returns what is left.

        One that cannot be written must not hold up the others.
        """
        try:
            await self._store.commit_runs([line.change for line in lines])
        except StorageError as error:
            if len(lines) > 1:
                return [left for line in lines for left in await self._write([line])]
            key = lines[0].change.run.offer.key
            log.warning("cannot record the end of an attempt yet", key=key, reason=str(error))
            return list(lines)
        for line in lines:
            line.written.set()
        return []
