"""The original's route, ``POST /api/v1/orchestration/services``, field for field.

Once the body is a JSON object the answer is 200, and ``Message`` says how it went. The original dropped
errors of the hand-over and answered ``ERROR_NONE``; here that means a target has accepted. A task that no
target has accepted within 3 s is cancelled and answered as ``SERVICE_NOT_FOUND``, because callers of the
original take that as "it does not run".
"""

import dataclasses
import hashlib
from typing import Any

import msgspec

from edgeorch.docker_options import split
from edgeorch.errors import (
    EdgeorchError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    PolicyError,
    TooManyRequestsError,
)
from edgeorch.model import AttemptState, Task, TaskSpec
from edgeorch.rest.backend import Backend, Idempotency, Submission
from edgeorch.rest.decode import decoded, object_of
from edgeorch.rest.problems import headers_of, problem_of
from edgeorch.rest.routes import IDEMPOTENCY_KEY, Answer, Asked, Route, Shown, answer, key_of
from edgeorch.rest.views import address_of

PLACE_S = 3.0
ERROR_NONE = "ERROR_NONE"
INVALID_PARAMETER = "INVALID_PARAMETER"
SERVICE_NOT_FOUND = "SERVICE_NOT_FOUND"
INTERNAL_SERVER_ERROR = "INTERNAL_SERVER_ERROR"
NOT_ALLOWED_COMMAND = "NOT_ALLOWED_COMMAND"
REFUSALS = {
    "service": "not found registered service",
    "program": "not matched service with executable",
    "requester": "not allowed service execution",
}
"""What the original says of a listed service, by ``PolicyError.rule``."""
NO_DEVICE = "not found error : No Device Is Return"
_NOT_TAKEN = (AttemptState.OFFERED, AttemptState.REFUSED)


class OriginalServiceInfo(msgspec.Struct, frozen=True, rename="pascal"):
    """One way to run the service. Others than ``native`` and ``container`` are passed over."""

    execution_type: str
    exec_cmd: tuple[str, ...]
    """The command, or ``["docker", "run", OPTIONS…, IMAGE, ARGS…]``."""


class OriginalRequest(msgspec.Struct, frozen=True, rename="pascal"):
    """The original's request; unknown fields are ignored."""

    service_name: str
    service_info: tuple[OriginalServiceInfo, ...]
    service_requester: str = ""
    self_selection: bool | str = "true"
    """Whether the asked node may run it itself: ``true`` or ``"true"``; any other text means no."""
    status_callback_uri: str = msgspec.field(default="", name="StatusCallbackURI")


class OriginalTarget(msgspec.Struct, frozen=True, rename="pascal"):
    """Where it runs; both empty where it does not."""

    execution_type: str = ""
    target: str = ""
    """IP address."""


class OriginalAnswer(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """The original's answer, and ours after ``TaskId``."""

    message: str
    service_name: str
    remote_target_info: OriginalTarget | None
    task_id: str = ""
    service_id: int = msgspec.field(default=0, name="ServiceID")
    """Number of the service at this node; status callbacks carry it."""
    detail: str = ""
    """What is wrong, for people."""


class CompatRoutes:
    """Serves the original's API."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def request_service(self, asked: Asked) -> Answer:
        """Run a service on the best node."""
        document = object_of(asked.body)
        key = key_of(asked.headers)
        given = document.get("ServiceName")
        name = given if isinstance(given, str) else ""
        try:
            request = msgspec.convert(document, OriginalRequest)
        except msgspec.ValidationError as error:
            return _failed(INVALID_PARAMETER, name, str(error), parsed=False)
        try:
            return await self._request(request, asked, key)
        except InvalidRequestError as error:
            return _failed(INVALID_PARAMETER, name, str(error), parsed=False)
        except PolicyError as error:
            return _failed(REFUSALS.get(error.rule, NOT_ALLOWED_COMMAND), name, str(error))
        except ForbiddenError as error:
            return _failed(NOT_ALLOWED_COMMAND, name, str(error))
        except NotFoundError as error:
            return _failed(NO_DEVICE, name, str(error))
        except TooManyRequestsError as error:
            failed = _failed(INTERNAL_SERVER_ERROR, name, str(error))
            return dataclasses.replace(failed, headers=headers_of(problem_of(error)))
        except EdgeorchError as error:
            return _failed(INTERNAL_SERVER_ERROR, name, str(error))

    async def _request(self, request: OriginalRequest, asked: Asked, key: str | None) -> Answer:
        name = request.service_name
        if not request.service_info:
            return _failed(NO_DEVICE, name, "ServiceInfo is empty")
        raw = msgspec.json.encode(spec_of(request))
        submission = Submission.of(decoded(raw, TaskSpec), raw, service_id=True)
        idempotency = Idempotency(key=key, body=hashlib.sha256(asked.body).digest()) if key else None
        (task,) = await self._backend.submit([submission], asked.caller, idempotency)
        task = await self._backend.wait_placed(task.id, PLACE_S)
        attempt = next((one for one in reversed(task.attempts) if one.state not in _NOT_TAKEN), None)
        if attempt is None:
            reason = task.reason or f"no node accepted it within {PLACE_S:g} s"
            if not task.state.terminal:
                task = await self._backend.cancel(task.id, asked.caller)
            return _failed(SERVICE_NOT_FOUND, name, reason, task=task)
        target = address_of(self._backend.node(attempt.node))
        return answer(
            OriginalAnswer(
                message=ERROR_NONE,
                service_name=name,
                remote_target_info=OriginalTarget(execution_type=attempt.driver, target=target),
                task_id=task.id,
                service_id=task.service_id or 0,
            )
        )

    def routes(self) -> tuple[Route, ...]:
        """The table."""
        return (
            Route(
                "POST",
                "/api/v1/orchestration/services",
                "requestService",
                "submit",
                self.request_service,
                "The original API: run a service on the best node",
                {200: Shown("``Message`` is ``ERROR_NONE`` once a node has accepted it.", OriginalAnswer)},
                headers=(IDEMPOTENCY_KEY,),
                body=OriginalRequest,
                any_type=True,
                tag="original API",
                description=(
                    f"``Message`` otherwise: ``{INVALID_PARAMETER}``, ``{SERVICE_NOT_FOUND}`` (no node took "
                    f"it within 3 s; it is cancelled), ``{NOT_ALLOWED_COMMAND}`` (policy; "
                    f"for a listed service {', '.join(f'``{one}``' for one in REFUSALS.values())}), "
                    f"``{NO_DEVICE}``, ``{INTERNAL_SERVER_ERROR}``; ``Detail`` has the sentence."
                ),
            ),
        )


def spec_of(request: OriginalRequest) -> dict[str, Any]:
    """The original's request as a task spec, not yet checked against its schema.

    Raises:
        InvalidRequestError: no entry that can be run here, or docker options that cannot be read.
    """
    services: list[dict[str, Any]] = []
    for info in request.service_info:
        if info.execution_type == "container":
            options, image, args = split(info.exec_cmd)
            services.append({"driver": "container", "image": image, "options": options, "args": args})
        elif info.execution_type == "native":
            services.append({"driver": "native", "argv": info.exec_cmd})
    if not services:
        types = ", ".join(repr(info.execution_type[:40]) for info in request.service_info[:8])
        raise InvalidRequestError(f"ExecutionType {types} cannot be run here", hint="use container or native")
    chosen = request.self_selection
    spec: dict[str, Any] = {
        "name": request.service_name,
        "service": services,
        "placement": {"self": chosen if isinstance(chosen, bool) else chosen == "true"},
    }
    if request.status_callback_uri:
        spec["callback_url"] = request.status_callback_uri
    if request.service_requester:
        spec["metadata"] = {"ServiceRequester": request.service_requester}
    return spec


def _failed(message: str, name: str, detail: str, *, parsed: bool = True, task: Task | None = None) -> Answer:
    """The original answers a null target where it could not read the parameters."""
    return answer(
        OriginalAnswer(
            message=message,
            service_name=name,
            remote_target_info=OriginalTarget() if parsed else None,
            task_id=task.id if task else "",
            service_id=(task.service_id or 0) if task else 0,
            detail=detail,
        )
    )
