"""How this node, as a target, reaches the origin of what it runs: itself, or another node over the wire."""

from collections.abc import Callable, Sequence

import structlog
import trio

from edgeorch.dispatch.ledger import Ledger
from edgeorch.dispatch.view import View
from edgeorch.errors import EdgeorchError, NodeUnreachableError
from edgeorch.model import PeerState, Run
from edgeorch.secret import Secret
from edgeorch.store import AttemptChange
from edgeorch.wire import Peers
from edgeorch.wire.messages import Renew, Renewed, Report, ReportTaken, RunState

log = structlog.get_logger()

REPORT_S = 10.0
PROGRESS_EVERY_S = 0.5


class Reporter:
    """The executor's ``Origins``."""

    def __init__(self, ledger: Ledger, view: View, peers: Peers, spawn: Callable[..., None]) -> None:
        self._ledger = ledger
        self._view = view
        self._peers = peers
        self._spawn = spawn
        self._progress_at: dict[str, float] = {}

    def is_local(self, origin: str) -> bool:
        """Whether the origin is this node."""
        return origin == self._view.node_id

    async def report(self, run: Run, state: RunState, changes: Sequence[AttemptChange]) -> bool:
        """See ``executor.life.Origins``."""
        if state.state.terminal:
            self._progress_at.pop(state.key, None)
        if self.is_local(run.offer.origin):
            await self._ledger.take_report(self._view.node_id, state, changes)
            return True
        answer: ReportTaken | None = None
        with trio.move_on_after(REPORT_S):
            answer = await self._peers.call(run.offer.origin, Report(run=state))
        if answer is None:
            raise NodeUnreachableError(f"origin {run.offer.origin} did not answer in {REPORT_S:g} s")
        return not answer.known or answer.sequence >= state.sequence

    async def secrets(self, run: Run) -> dict[str, Secret]:
        """See ``executor.life.Origins``."""
        return await self._ledger.secrets_of(run.offer.task_id)

    def progress(self, run: Run, text: str) -> None:
        """Pass on a line for people, at most two a second; a lost one does no harm."""
        now = trio.current_time()
        if now - self._progress_at.get(run.offer.key, float("-inf")) < PROGRESS_EVERY_S:
            return
        self._progress_at[run.offer.key] = now
        state = RunState(key=run.offer.key, state=run.state, driver=run.driver, progress=text)
        self._spawn(self._send_progress, run, state)

    async def _send_progress(self, run: Run, state: RunState) -> None:
        try:
            if self.is_local(run.offer.origin):
                await self._ledger.take_progress(self._view.node_id, state)
            else:
                with trio.move_on_after(REPORT_S):
                    await self._peers.call(run.offer.origin, Report(run=state))
        except EdgeorchError as error:
            log.debug("progress was not passed on", key=state.key, reason=str(error))

    async def renew(self, origin: str, keys: Sequence[str]) -> set[str] | None:
        """See ``executor.life.Origins``."""
        try:
            answer: Renewed = await self._peers.call(origin, Renew(keys=tuple(keys)))
        except EdgeorchError as error:
            log.debug("a lease was not renewed", origin=origin, reason=str(error))
            return None
        return set(answer.keys)

    async def reachable(self, origin: str) -> None:
        """Return when membership sees the origin come (back) to life."""
        peer = self._view.membership.snapshot().get(origin)
        was_alive = peer is not None and peer.state is PeerState.ALIVE
        while True:
            await self._view.membership.states_changed.wait()
            peer = self._view.membership.snapshot().get(origin)
            alive = peer is not None and peer.state is PeerState.ALIVE
            if alive and not was_alive:
                return
            was_alive = alive
