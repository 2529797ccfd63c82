"""One attempt to the body that makes its container: the user's options, then what the node adds."""

from typing import Any

from edgeorch.docker_options import ReadFile, parse
from edgeorch.errors import DockerOptionError, DriverError
from edgeorch.executor.driver import Launch
from edgeorch.model import ContainerService

TASK = "edgeorch.task"
ATTEMPT = "edgeorch.attempt"
NODE = "edgeorch.node"
STORE = "edgeorch.store"
OUTPUT_MAX = "edgeorch.output_max"

MIN_NANO_CPUS = 10_000_000
"""The Engine takes no less than a hundredth of a CPU."""


def name_of(key: str) -> str:
    """The container's name: the Engine refuses a second one, which makes ``start`` idempotent."""
    return f"edgeorch-{key}"


def body_for(
    launch: Launch, *, node_id: str, store_id: str, api_version: tuple[int, ...], read_file: ReadFile
) -> dict[str, Any]:
    """The body of ``POST /containers/create``.

    Raises:
        DriverError: ``invalid_service`` for options that cannot be used.
    """
    service = launch.service
    if not isinstance(service, ContainerService):
        raise DriverError("this is no container service", reason="invalid_service")
    try:
        body, _ = parse(service.options, service.image, service.args, read_file=read_file)
    except DockerOptionError as error:
        raise DriverError(error.detail, hint=error.hint, reason="invalid_service") from error
    body["Labels"] |= {
        TASK: launch.key.rpartition(".")[0],
        ATTEMPT: launch.key,
        NODE: node_id,
        STORE: store_id,
        OUTPUT_MAX: str(launch.output_max),
    }
    body["Env"] += [f"{name}={value}" for name, value in launch.env.items()]
    host = body["HostConfig"]
    # The driver removes every container itself, once its exit and output are safe.
    host["AutoRemove"] = False
    if launch.cpus and not (host["NanoCpus"] or host["CpuQuota"] or host["CpuPeriod"]):
        host["NanoCpus"] = max(round(launch.cpus * 10**9), MIN_NANO_CPUS)
    if launch.memory and not host["Memory"]:
        host["Memory"] = launch.memory
    if body["MacAddress"] and api_version >= (1, 44):
        # from this version on the address belongs to the endpoint
        endpoints = body["NetworkingConfig"]["EndpointsConfig"]
        endpoints.setdefault(host["NetworkMode"], {})["MacAddress"] = body["MacAddress"]
    return body


def restarts(body: dict[str, Any]) -> bool:
    """Whether the Engine may start the container again after it has exited. Takes ``inspect`` output too."""
    policy = body["HostConfig"].get("RestartPolicy") or {}
    return policy.get("Name", "") not in ("", "no")
