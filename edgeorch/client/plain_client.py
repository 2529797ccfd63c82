"""The client for code without Trio."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from datetime import datetime
from typing import Any, Self, TypeVar, cast

import httpx2

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


class Client:
    """Talks to one node, and through it to its fleet. ``AsyncClient`` tells more of each method.

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
        transport = httpx2.HTTPTransport(verify=options.verify, trust_env=False, socket_options=KEEPALIVE)
        self._http = httpx2.Client(
            base_url=self.endpoint.url, headers=options.headers, transport=transport, trust_env=False
        )

    def __enter__(self) -> Self:
        self._http.__enter__()
        return self

    def __exit__(self, *about: object) -> None:
        self._http.close()

    def submit(self, spec: calls.Spec, *, idempotency_key: str | None = None, wait_s: float = 0.0) -> Task:
        """Hand a task in."""
        return self._do(calls.submit(spec, key=idempotency_key, wait_s=wait_s))

    def submit_batch(
        self, specs: Sequence[calls.Spec], *, idempotency_key: str | None = None
    ) -> tuple[Task, ...]:
        """Hand in all or none."""
        return self._do(calls.submit_batch(specs, key=idempotency_key))

    def explain(self, spec: calls.Spec) -> tuple[Ranked, ...]:
        """The ranking that ``submit`` would see now."""
        return self._do(calls.explain(spec))

    def task(self, task_id: str) -> Task:
        """One task of the fleet."""
        return self._do(calls.task(task_id))

    def tasks_page(self, which: TaskFilter = ALL_TASKS, *, cursor: str | None = None) -> TaskPage:
        """One page of tasks, newest first."""
        return self._do(calls.tasks_page(which, cursor))

    def tasks(self, which: TaskFilter = ALL_TASKS) -> AbstractContextManager[Iterator[Task]]:
        """Tasks page by page, newest first."""
        return closing(self._items(calls.all_tasks(which)))

    def wait(self, task_id: str) -> Task:
        """The task once it has ended."""
        return self._do(until(task_id, calls.ended))

    def cancel(self, task_id: str) -> Task:
        """Begin to cancel a task."""
        return self._do(calls.cancel(task_id))

    def nodes(self) -> tuple[Node, ...]:
        """Every known node, the asked one first."""
        return self._do(calls.nodes())

    def node(self, name_or_id: str = "self") -> Node:
        """One node."""
        return self._do(calls.node(name_or_id))

    def change_node(self, name_or_id: str, action: Action) -> Node:
        """Drain, cordon or resume a node."""
        return self._do(calls.change_node(name_or_id, action))

    def audit(
        self,
        *,
        since: datetime | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        local: bool = False,
    ) -> AuditPage:
        """One page of who did what, newest first; for administrators."""
        return self._do(calls.audit(since, limit=limit, cursor=cursor, local=local))

    def ready(self) -> None:
        """Return where the asked node is ready; ``UnavailableError`` says what is wrong where it is not."""
        self._do(calls.ready())

    def forget_node(self, name_or_id: str) -> None:
        """Drop a dead or left node from every table."""
        self._do(calls.forget(name_or_id))

    def output(
        self,
        task_id: str,
        *,
        follow: bool = False,
        which: Which = "both",
        tail: int | None = None,
        attempt: int | None = None,
    ) -> AbstractContextManager[Iterator[Output]]:
        """What the service printed: ``with client.output(…) as pieces: for piece in pieces``."""
        cursor = OutputCursor(task_id, which, follow=follow, tail=tail, attempt=attempt)
        return closing(self._items(follow_output(cursor) if follow else read_output(cursor)))

    def events(
        self, task_id: str | None = None, *, after: str = ""
    ) -> AbstractContextManager[Iterator[Event]]:
        """Past and live events of a task until it has ended, or of all tasks of the asked node for ever."""
        return closing(self._items(follow_events(EventCursor(task_id, after))))

    def _do(self, steps: Steps[T]) -> T:
        with closing(self._items(emitting_result(steps))) as items:
            return cast("T", next(items))

    def _items(self, steps: Steps[None]) -> Generator[Any]:
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
                    brought = self._carry_out(step, answer)
                except UnavailableError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(brought)
        except StopIteration:
            return
        finally:
            answer.close()

    def _carry_out(self, step: Call | Open | Read | Pause, answer: "_Answer") -> Any:  # noqa: ANN401  per step
        try:
            match step:
                case Call():
                    got = self._http.send(request_of(self._http, step))
                    return Reply(got.status_code, got.headers, got.content)
                case Open():
                    return answer.open(step.call)
                case Read():
                    return next(answer.chunks, b"")
                case Pause():
                    return time.sleep(step.seconds)
        except httpx2.TransportError as error:
            raise gone(self.endpoint, error) from None


class _Answer:
    """The one answer that is being read piece by piece."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http
        self._response: httpx2.Response | None = None
        self.chunks: Iterator[bytes]

    def open(self, call: Call) -> None:
        self.close()
        self._response = got = self._http.send(request_of(self._http, call, stream=True), stream=True)
        if got.is_error:
            raise error_of(Reply(got.status_code, got.headers, got.read()))
        self.chunks = got.iter_bytes()

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
