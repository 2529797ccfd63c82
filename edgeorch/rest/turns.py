"""Which requests begin in this turn of the loop: a few of each address, so that a crowd delays nobody else.

Trio runs in one turn all that is ready. Whoever comes meanwhile waits until each of a crowd's requests has
had its part, and again wherever its own request waits for something.
"""

from collections import Counter, deque
from typing import NoReturn

import trio

SHARE = 8
"""Requests of one address that begin in one turn."""


class Turns:
    """Lets requests begin; ``run`` counts the turns while there is something to count."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()
        self._waiting: dict[str, deque[trio.Event]] = {}
        self._asked = trio.Event()

    async def take(self, address: str) -> None:
        """Wait until one more request of this address may begin; first come, first served."""
        self._asked.set()
        if address not in self._waiting and self._begun[address] < SHARE:
            self._begun[address] += 1
            return
        turn = trio.Event()
        line = self._waiting.setdefault(address, deque())
        line.append(turn)
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn in line:
                line.remove(turn)
            raise

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Let those who wait begin, turn by turn."""
        task_status.started()
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            self._begun.clear()
            for address, line in list(self._waiting.items()):
                while line and self._begun[address] < SHARE:
                    self._begun[address] += 1
                    line.popleft().set()
                if not line:
                    del self._waiting[address]
            if self._begun:
                self._asked.set()
                await trio.lowlevel.checkpoint()
