"""Status callbacks: an outbox in the store, delivered at least once and in order per task.

A callback is committed together with the change that it tells of. Names are resolved once per try, the
addresses are checked, and the checked address is the one that is connected to, so a name that changes its
mind in between leads nowhere else. Redirects are not followed.
"""

import math
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, Protocol

import msgspec
import structlog
import trio

from edgeorch.config import Callbacks as Settings
from edgeorch.errors import StorageError
from edgeorch.model import Task, TaskSpec, TaskState
from edgeorch.seams import Seams
from edgeorch.store import Callback, DropCallback, PutCallback, PutMark, TaskChange, TaskStore

if TYPE_CHECKING:
    import httpx2

log = structlog.get_logger()

CALLBACK = "callback"
AT_ONCE = 16
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 300.0
READ_AGAIN_S = 5.0
AT_LEAST_S = 600.0
"""How long a callback of an earlier life of the node is tried, however old it seems to be."""
ORIGINAL_STATUS = {TaskState.RUNNING: "Started", TaskState.SUCCEEDED: "Finished"}


class WhyRefused(Protocol):
    """``policy.callbacks``."""

    def __call__(self, host: str, address: str, *, loopback: bool) -> str:
        """Why a callback to a host must not go to this address of it; empty where it may."""
        ...


class NotDeliveredError(Exception):
    """The receiver did not take it; ``final`` where another try cannot help."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class Callbacks:
    """Makes callbacks for changes of tasks, and delivers them.

    Args:
        store: where the outbox is.
        settings: ``[callbacks]``.
        seams: clocks and jitter.
        address_of: IP address of a node by id, for the original API's ``Target``.
        why_refused: why a callback to a host must not go to this address of it; empty where it may.
    """

    def __init__(
        self,
        store: TaskStore,
        settings: Settings,
        seams: Seams,
        address_of: Callable[[str], str],
        why_refused: WhyRefused,
    ) -> None:
        self.store = store
        self.settings = settings
        self.seams = seams
        self._address_of = address_of
        self._why_refused = why_refused
        self._number = 0
        self._wake = trio.Event()
        self._made: set[str] = set()
        """Made here and not yet found in the outbox."""
        self._since: dict[str, tuple[float, float]] = {}
        """Boot times when each callback was made, as far as can be told, and first seen in this life.

        Ages grow with the clock that nobody sets.
        """
        self._busy: set[str] = set()
        self._client: httpx2.AsyncClient | None = None
        """Made for the first callback, and never closed: it keeps no connections."""
        self._limiter = trio.CapacityLimiter(AT_ONCE)
        self._resolving = trio.CapacityLimiter(4)
        self.delivered = 0
        self.dropped = 0

    def changes(self, task: Task, spec: TaskSpec, kind: str) -> Sequence[TaskChange]:
        """The row of a callback for this change, if the task wants one."""
        if spec.callback_url is None:
            return ()
        # Above every number of an earlier life of this node, whatever was delivered and whatever clocks said:
        # the receiver may drop what has the key of another.
        self._number = max(self._number, self.store.marks.get(CALLBACK, 0), int(self.seams.wall() * 1000)) + 1
        callback = Callback(
            id=f"{task.id}.{self._number}",
            task_id=task.id,
            number=self._number,
            url=spec.callback_url,
            loopback=task.caller.loopback,
            body=self._body(task, kind),
            created_at=self.seams.wall(),
            created_tick=self.seams.tick(),
        )
        self._made.add(callback.id)
        now = self.seams.boottime()
        self._since[callback.id] = (now, now)
        return PutCallback(callback=callback), PutMark(name=CALLBACK, number=self._number)

    def wake(self) -> None:
        """There may be something new in the outbox; it is read only where a callback was made."""
        if self._made:
            self._wake.set()

    def take_back(self, changes: Sequence[TaskChange]) -> None:
        """Look for these in the outbox no more: they were not committed, and will not be."""
        for change in changes:
            if isinstance(change, PutCallback):
                self._made.discard(change.callback.id)
                self._since.pop(change.callback.id, None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Deliver until cancelled; what is left in the outbox goes out after the next start."""
        async with trio.open_nursery() as nursery:
            pause = await self._start_waiting(nursery)
            task_status.started()
            while True:
                with trio.move_on_after(pause):
                    await self._wake.wait()
                pause = await self._start_waiting(nursery)
        raise AssertionError("unreachable")

    async def _start_waiting(self, nursery: trio.Nursery) -> float:
        """Deliver what the outbox holds of tasks that are not busy; how long to wait for a wake-up."""
        self._wake = trio.Event()
        try:
            outbox = await self.store.callbacks()
        except StorageError as error:
            log.warning("cannot read the outbox", reason=str(error))
            return READ_AGAIN_S
        waiting: dict[str, list[Callback]] = {}
        for callback in outbox:
            waiting.setdefault(callback.task_id, []).append(callback)
            self._made.discard(callback.id)
            now = self.seams.boottime()
            age_s = self.seams.age(callback.created_at, callback.created_tick)
            self._since.setdefault(callback.id, (now - age_s, now))
            # A release that kept no mark made these.
            self._number = max(self._number, callback.number)
        for task_id, callbacks in waiting.items():
            if task_id not in self._busy:
                self._busy.add(task_id)
                callbacks.sort(key=lambda one: one.number)
                nursery.start_soon(self._deliver_all, task_id, callbacks)
        return math.inf

    def statistics(self) -> dict[str, int]:
        """Counts for ``/metrics``."""
        return {"delivered": self.delivered, "dropped": self.dropped, "busy": len(self._busy)}

    def _body(self, task: Task, kind: str) -> bytes:
        """The original API's fields for its tasks; ours have the names of the REST API."""
        attempt = task.current
        node = attempt.node if attempt else ""
        if task.service_id is not None:
            return msgspec.json.encode(
                {
                    "ServiceID": task.service_id,
                    "ServiceName": task.name,
                    "TaskId": task.id,
                    "Status": ORIGINAL_STATUS.get(task.state, "Failed"),
                    "Target": self._address_of(node) if node else "",
                    "ExitCode": task.exit_code,
                }
            )
        return msgspec.json.encode(
            {
                "id": task.id,
                "name": task.name,
                "event": kind,
                "state": task.state,
                "reason": task.reason,
                "exit_code": task.exit_code,
                "node": node or None,
                "node_name": attempt.node_name if attempt else None,
                "attempt": attempt.number if attempt else None,
                "metadata": msgspec.json.decode(task.spec).get("metadata", {}),
            }
        )

    async def _deliver_all(self, task_id: str, callbacks: Sequence[Callback]) -> None:
        for callback in callbacks:
            await self._deliver(callback)
        self._busy.discard(task_id)
        self._wake.set()

    async def _deliver(self, callback: Callback) -> None:
        """Try until it is taken, refused for good, or too old; then forget it."""
        wait_s = FIRST_WAIT_S
        told = False
        while True:
            try:
                async with self._limiter:
                    await self._send(callback)
                self.delivered += 1
                break
            except NotDeliveredError as error:
                if error.final or self._too_old(callback):
                    log.warning("a callback is given up", task=callback.task_id, reason=str(error))
                    self.dropped += 1
                    break
                if not told:
                    log.info("a callback is not taken yet", task=callback.task_id, reason=str(error))
                    told = True
            await trio.sleep(wait_s * self.seams.rng.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)
        await self._forget(callback)

    def _too_old(self, callback: Callback) -> bool:
        """Whether it was tried for long enough; after a restart for a while in any case."""
        now = self.seams.boottime()
        made, seen = self._since[callback.id]
        limit = self.settings.give_up_s
        # The clock may have been wrong when it was made, or when the node was started.
        return now - made > limit and now - seen > min(limit, AT_LEAST_S)

    async def _forget(self, callback: Callback) -> None:
        self._since.pop(callback.id, None)
        while True:
            try:
                await self.store.commit([DropCallback(id=callback.id)])
            except StorageError as error:
                log.warning("cannot record a delivered callback", task=callback.task_id, reason=str(error))
                await trio.sleep(5)
            else:
                return

    async def _send(self, callback: Callback) -> None:
        import httpx2

        try:
            url = httpx2.URL(callback.url)
        except httpx2.InvalidURL as error:
            raise NotDeliveredError(f"the URL cannot be used: {error}", final=True) from None
        place = url.netloc.decode("ascii")
        try:
            with _too_slow(self.settings.timeout_s):
                status = await self._post(url, callback)
        except httpx2.HTTPError as error:
            raise NotDeliveredError(f"{place}: {str(error) or type(error).__name__}") from None
        if not 200 <= status < 300:
            raise NotDeliveredError(f"{place} answered {status}")

    async def _post(self, url: "httpx2.URL", callback: Callback) -> int:
        """The status of the answer of the first allowed address that takes the connection."""
        import httpx2

        self._client = self._client or _client()
        host = url.raw_host.decode("ascii")
        addresses = await self._resolve(host, url.port or (443 if url.scheme == "https" else 80))
        why = {one: self._why_refused(host, one, loopback=callback.loopback) for one in addresses}
        allowed = [address for address in addresses if not why[address]]
        if not allowed:
            raise NotDeliveredError(why[addresses[0]], final=True)
        headers = {
            "Host": url.netloc.decode("ascii"),
            "Content-Type": "application/json",
            "Idempotency-Key": callback.id,
        }
        for address in allowed:
            # The body of the answer stays unread: nobody needs it, and it may be of any size.
            call = self._client.stream(
                "POST",
                url.copy_with(host=address),
                content=callback.body,
                headers=headers,
                extensions={"sni_hostname": host},
            )
            try:
                async with call as answer:
                    return answer.status_code
            except httpx2.ConnectError:
                if address == allowed[-1]:
                    raise
        raise AssertionError("unreachable")

    async def _resolve(self, host: str, port: int) -> list[str]:
        try:
            found = await trio.to_thread.run_sync(
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
                limiter=self._resolving,
                abandon_on_cancel=True,
            )
        except (OSError, UnicodeError) as error:
            raise NotDeliveredError(f"{host}: {error}") from None
        return list(dict.fromkeys(str(one[4][0]) for one in found))


def _client() -> "httpx2.AsyncClient":
    import httpx2  # some megabytes that a node without callbacks need not hold

    # No connection is kept: it was verified for one name, and another name may have the same address.
    limits = httpx2.Limits(max_connections=AT_ONCE, max_keepalive_connections=0)
    # The deadline around each try covers name, connection and answer; proxies would see the checked address.
    return httpx2.AsyncClient(limits=limits, timeout=None, follow_redirects=False, trust_env=False)


@contextmanager
def _too_slow(seconds: float) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise NotDeliveredError(f"no answer in {seconds:g} s") from None
