"""The request of the original's README, with a container where one can run here and a program elsewhere."""

import contextlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import trio

from edgeorch.errors import StartError

HELLO = "hello-world"
PULL_S = 8.0
SCRIPT = 'for i in 1 2 3; do echo "hello $i from node $EDGEORCH_NODE"; sleep 0.2; done'
Wanted = Literal["container", "native"] | None


@dataclass(frozen=True)
class Example:
    """What is run, and why in this form."""

    driver: Literal["container", "native"]
    command: tuple[str, ...]
    why: str

    def body(self, callback_url: str) -> dict[str, Any]:
        """The request as the original documents it."""
        return {
            "ServiceName": HELLO,
            "ServiceInfo": [{"ExecutionType": self.driver, "ExecCmd": list(self.command)}],
            "StatusCallbackURI": callback_url,
        }

    def curl(self, host: str, callback_url: str) -> str:
        """The command line that sends it."""
        document = json.dumps(self.body(callback_url)).replace("'", "'\\''")
        return (
            f'curl -X POST "{host}/api/v1/orchestration/services" -H "accept: application/json" '
            f"-H \"Content-Type: application/json\" -d '{document}'"
        )

    def spec(self) -> dict[str, Any]:
        """The same as a task spec, to ask who would be chosen."""
        if self.driver == "native":
            return {"name": HELLO, "service": [{"driver": "native", "argv": list(self.command)}]}
        # docker run -v SOURCE:TARGET:MODE IMAGE ARGS...
        options, image, args = self.command[2:4], self.command[4], self.command[5:]
        service = {"driver": "container", "image": image, "options": list(options), "args": list(args)}
        return {"name": HELLO, "service": [service]}


async def choose(wanted: Wanted) -> Example:
    """The container where an Engine answers and has or gets an image, else the program.

    Raises:
        StartError: a container is wanted and none can run here.
    """
    if wanted == "native":
        return _native("as you asked")
    found: tuple[str, str] | None = None
    with trio.move_on_after(PULL_S):
        found = await trio.to_thread.run_sync(
            _find_image, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
        )
    image, why = found or ("", f"the Docker Engine needs more than {PULL_S:.0f} s for an image")
    if not image:
        if wanted == "container":
            raise StartError(f"no container can run here: {why}", hint="leave --container out")
        return _native(f"{why}, and a native service needs no Engine")
    mount = ("docker", "run", "-v", "/var/run:/var/run:rw", image)
    words = () if image == HELLO else ("echo", "Hello from a container of your fleet!")
    return Example("container", (*mount, *words), why)


def _native(why: str) -> Example:
    return Example("native", ("sh", "-c", SCRIPT), why)


def _find_image() -> tuple[str, str]:
    """(image, why this one), or an empty image and why there is none. Blocks."""
    import docker
    import docker.errors
    import requests

    failures = (docker.errors.DockerException, requests.RequestException, OSError)
    try:
        engine = docker.from_env(timeout=10)
        version = engine.version().get("Version", "?")
    except failures:
        return "", "no Docker Engine answers"
    with contextlib.closing(engine):
        answers = f"Docker Engine {version} answers"
        local = {tag for image in engine.images.list() for tag in image.tags}
        if f"{HELLO}:latest" in local:
            return HELLO, f"{answers} and has the image {HELLO}"
        for tag in sorted(local):
            if tag.rpartition("/")[2].startswith("busybox:"):
                return tag, f"{answers} and has the image {tag}"
        try:
            engine.images.pull(HELLO, tag="latest")
        except failures:
            return "", f"{answers}, but the image {HELLO} is not there and cannot be pulled"
        return HELLO, f"{answers} and pulled the image {HELLO}"
