"""The client on Trio."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import datetime
from typing import Any, Self, TypeVar, cast

import httpx2
import trio

from edgeorch.client import calls
from edgeorch.client.answers import AuditPage, Event, Node, Output, Ranked, Task, TaskPage
from edgeorch.client.calls import ALL_TASKS, Action, TaskFilter, error_of
from edgeorch.client.connection import KEEPALIVE, gone, options_of, request_of
from edgeorch.client.endpoint import Endpoint, resolve
from edgeorch.client.steps import Call, Emit, Open, Pause, Read, Reply, Steps, emitting_result
from edgeorch.client.streams import (
    EventCursor,
    OutputCursor,
    Which,
    follow_events,
    follow_output,
    read_output,
    until,
)
from edgeorch.errors import UnavailableError

T = TypeVar("T")


class AsyncClient:
    """Talks to one node, and through it to its fleet; deadlines are the caller's (``trio.fail_after``).

    Use it as an asynchronous context manager. Every method raises ``NodeUnreachableError`` where the node
    does not answer, and the ``EdgeorchError`` that the node answers with otherwise.

    Args:
        url: the node; what is left out of the first three is looked up, see ``endpoint.resolve``.
        token: bearer token.
        ca: PEM file of the fleet's CA.
        endpoint: all three, already resolved.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        ca: str | None = None,
        *,
        endpoint: Endpoint | None = None,
    ) -> None:
        self.endpoint = endpoint or resolve(url, token, ca)
        options = options_of(self.endpoint)
        transport = httpx2.AsyncHTTPTransport(
            verify=options.verify, trust_env=False, socket_options=KEEPALIVE
        )
        self._http = httpx2.AsyncClient(
            base_url=self.endpoint.url, headers=options.headers, transport=transport, trust_env=False
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *about: object) -> None:
        await self._http.aclose()

    async def submit(
        self, spec: calls.Spec, *, idempotency_key: str | None = None, wait_s: float = 0.0
    ) -> Task:
        """Hand a task in; once this returns it survives the node's crash. Waits ``wait_s`` for its end.

        Asked again at the same node where the connection broke; the Idempotency-Key makes that one task.
        """
        return await self._do(calls.submit(spec, key=idempotency_key, wait_s=wait_s))

    async def submit_batch(
        self, specs: Sequence[calls.Spec], *, idempotency_key: str | None = None
    ) -> tuple[Task, ...]:
        """Hand in all or none."""
        return await self._do(calls.submit_batch(specs, key=idempotency_key))

    async def explain(self, spec: calls.Spec) -> tuple[Ranked, ...]:
        """The ranking that ``submit`` would see now; nothing is kept."""
        return await self._do(calls.explain(spec))

    async def task(self, task_id: str) -> Task:
        """One task of the fleet."""
        return await self._do(calls.task(task_id))

    async def tasks_page(self, which: TaskFilter = ALL_TASKS, *, cursor: str | None = None) -> TaskPage:
        """One page of tasks, newest first."""
        return await self._do(calls.tasks_page(which, cursor))

    def tasks(self, which: TaskFilter = ALL_TASKS) -> AbstractAsyncContextManager[AsyncIterator[Task]]:
        """Tasks page by page: ``async with client.tasks() as found: async for task in found``."""
        return aclosing(self._items(calls.all_tasks(which)))

    async def wait(self, task_id: str) -> Task:
        """The task once it has ended; woken by its events, without polling."""
        return await self._do(until(task_id, calls.ended))

    async def cancel(self, task_id: str) -> Task:
        """Begin to cancel a task."""
        return await self._do(calls.cancel(task_id))

    async def nodes(self) -> tuple[Node, ...]:
        """Every known node, the asked one first."""
        return await self._do(calls.nodes())

    async def node(self, name_or_id: str = "self") -> Node:
        """One node."""
        return await self._do(calls.node(name_or_id))

    async def change_node(self, name_or_id: str, action: Action) -> Node:
        """Drain (hand over, take nothing new), cordon (take nothing new) or resume a node."""
        return await self._do(calls.change_node(name_or_id, action))

    async def audit(
        self,
        *,
        since: datetime | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        local: bool = False,
    ) -> AuditPage:
        """One page of who did what, newest first; for administrators."""
        return await self._do(calls.audit(since, limit=limit, cursor=cursor, local=local))

    async def ready(self) -> None:
        """Return where the asked node is ready; ``UnavailableError`` says what is wrong where it is not."""
        await self._do(calls.ready())

    async def forget_node(self, name_or_id: str) -> None:
        """Drop a dead or left node from every table."""
        await self._do(calls.forget(name_or_id))

    def output(
        self,
        task_id: str,
        *,
        follow: bool = False,
        which: Which = "both",
        tail: int | None = None,
        attempt: int | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[Output]]:
        """What the service printed: ``async with client.output(…) as pieces: async for piece in pieces``.

        Args:
            task_id: the task.
            follow: go on until the task has ended, over broken connections and to newer attempts.
            which: the streams.
            tail: only the last lines, so many.
            attempt: this attempt alone; None: the newest.
        """
        cursor = OutputCursor(task_id, which, follow=follow, tail=tail, attempt=attempt)
        return aclosing(self._items(follow_output(cursor) if follow else read_output(cursor)))

    def events(
        self, task_id: str | None = None, *, after: str = ""
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Past and live events of a task until it has ended, or of all tasks of the asked node for ever."""
        return aclosing(self._items(follow_events(EventCursor(task_id, after))))

    async def _do(self, steps: Steps[T]) -> T:
        async with aclosing(self._items(emitting_result(steps))) as items:
            return cast("T", await anext(items))

    async def _items(self, steps: Steps[None]) -> AsyncGenerator[Any]:
        """Carry the steps out; yields what they emit."""
        answer = _Answer(self._http)
        try:
            step = next(steps)
            while True:
                if isinstance(step, Emit):
                    yield step.item
                    step = next(steps)
                    continue
                try:
                    brought = await self._carry_out(step, answer)
                except UnavailableError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(brought)
        except StopIteration:
            return
        finally:
            with trio.move_on_after(2, shield=True):
                await answer.close()

    async def _carry_out(self, step: Call | Open | Read | Pause, answer: "_Answer") -> Any:  # noqa: ANN401  per step
        try:
            match step:
                case Call():
                    got = await self._http.send(request_of(self._http, step))
                    return Reply(got.status_code, got.headers, got.content)
                case Open():
                    return await answer.open(step.call)
                case Read():
                    return await anext(answer.chunks, b"")
                case Pause():
                    return await trio.sleep(step.seconds)
        except httpx2.TransportError as error:
            raise gone(self.endpoint, error) from None


class _Answer:
    """The one answer that is being read piece by piece."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self._response: httpx2.Response | None = None
        self.chunks: AsyncIterator[bytes]

    async def open(self, call: Call) -> None:
        await self.close()
        got = await self._http.send(request_of(self._http, call, stream=True), stream=True)
        if got.is_error:
            raise error_of(Reply(got.status_code, got.headers, await got.aread()))
        self._response, self.chunks = got, got.aiter_bytes()

    async def close(self) -> None:
        """Leave the answer, read to its end or not."""
        response, self._response = self._response, None
        if response is None:
            return
        # httpx2 reads through generators inside generators, and only a cancelled read unwinds all of them;
        # closing the outer one leaves the inner ones to the garbage collector.
        with trio.CancelScope() as scope, contextlib.suppress(httpx2.TransportError):
            scope.cancel()
            async for _ in self.chunks:
                pass
        await response.aclose()
