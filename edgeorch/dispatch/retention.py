"""Forgetting what has ended long ago: tasks by age, output by age and size."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import structlog
import trio

from edgeorch.config import Store as Settings
from edgeorch.dispatch.ledger import Ledger
from edgeorch.errors import StorageError
from edgeorch.executor.executor import Executor
from edgeorch.output import sweep

log = structlog.get_logger()

EVERY_S = 600.0


class Retention:
    """Cleans up every ten minutes."""

    def __init__(self, settings: Settings, ledger: Ledger, executor: Executor, roots: Sequence[Path]) -> None:
        self.settings = settings
        self.ledger = ledger
        self.executor = executor
        self.roots = tuple(dict.fromkeys(roots))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Clean up until cancelled; a full disk is a reason to go on, not to stop."""
        task_status.started()
        while True:
            await trio.sleep(EVERY_S * self.ledger.seams.rng.uniform(0.8, 1.2))
            await self.clean()

    async def clean(self) -> None:
        """One round."""
        before = self.ledger.seams.wall() - self.settings.retention_s
        self.ledger.recent.clear()
        audit_before = self.ledger.seams.wall() - self.settings.audit_s
        try:
            forgotten = await self.ledger.store.prune(before)
            await self.ledger.store.prune_audit(audit_before, self.settings.audit_bytes)
        except StorageError as error:
            # The disk may be full of output, so that is removed all the same.
            log.warning("old tasks cannot be forgotten yet", reason=str(error))
        else:
            if forgotten:
                log.info("forgot old tasks", count=len(forgotten))
        keep = set(self.executor.lives())
        for root in self.roots:
            try:
                swept = await sweep(
                    root, keep=keep, max_bytes=self.settings.retention_bytes, changed_before=before
                )
            except OSError as error:
                log.warning("old output cannot be removed", folder=str(root), reason=error.strerror)
                continue
            if swept.removed:
                log.info("removed old output", folders=len(swept.removed))
