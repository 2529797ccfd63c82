"""Forgetting what has ended long ago: tasks by age, output by age and size."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import structlog
import trio

from edgeorch.config import Store as Settings
from edgeorch.dispatch.ledger import Ledger
from edgeorch.errors import StorageError
from edgeorch.executor.executor import Executor
from edgeorch.output import Folder, keys_in, sweep

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
        self.ledger.recent.clear()
        try:
            forgotten = await self.ledger.store.prune(self.settings.retention_s)
            await self.ledger.store.prune_audit(self.settings.audit_s, self.settings.audit_bytes)
        except StorageError as error:
            # The disk may be full of output, so that is removed all the same.
            log.warning("old tasks cannot be forgotten yet", reason=str(error))
        else:
            if forgotten:
                log.info("forgot old tasks", count=len(forgotten))
        keep = set(self.executor.lives())
        for root in self.roots:
            try:
                old = await self._old(root)
                swept = await sweep(root, keep=keep, max_bytes=self.settings.retention_bytes, old=old)
            except OSError as error:
                log.warning("old output cannot be removed", folder=str(root), reason=error.strerror)
                continue
            if swept.removed:
                log.info("removed old output", folders=len(swept.removed))

    async def _old(self, root: Path) -> Callable[[Folder], bool]:
        """Output is kept as long as its task; what no task tells of, for as long after it was written."""
        now, retention_s = self.ledger.seams.wall(), self.settings.retention_s
        try:
            fresh = await self.ledger.store.fresh(await keys_in(root), retention_s)
        except StorageError as error:
            log.warning("cannot see which output is old yet", reason=str(error))
            return lambda _folder: False
        # The clock may have been set since, in either direction.
        return lambda folder: folder.key not in fresh and abs(now - folder.changed) > retention_s
