"""The Docker Engine through its SDK. Everything here blocks and belongs into a thread.

Importing this module loads the SDK (some 20 MB), so the driver does it when there is an Engine to talk to.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import docker.auth
import docker.errors
import requests
import urllib3.exceptions
from docker import APIClient
from docker.constants import MINIMUM_DOCKER_API_VERSION
from docker.utils import kwargs_from_env, parse_repository_tag

from edgeorch.errors import DriverError
from edgeorch.executor.container_pull import PullProgress
from edgeorch.executor.container_socket import away
from edgeorch.executor.container_state import NameTakenError

CALL_TIMEOUT_S = 60
PING_TIMEOUT_S = 3
CONNECT_TIMEOUT_S = 5
_CONNECTIONS = 16
_READ_BYTES = 65_536

_NOT_MODIFIED, _BAD_REQUEST, _NOT_FOUND, _CONFLICT = 304, 400, 404, 409


class EngineStream:
    """The body of an answer that goes on; see ``container_output.Stream``.

    The socket is found the way the SDK's own CancellableStream does it.
    """

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        raw: Any = response.raw
        self._socket: socket.socket = raw._fp.fp.raw._sock  # noqa: SLF001  no public way there
        # The time limit of the request was for its head; from here on silence is normal.
        self._socket.settimeout(None)

    def read(self) -> bytes:
        """What is there, at least one byte; empty at the end, also when the Engine has gone away."""
        try:
            data: bytes = self._response.raw.read1(_READ_BYTES)
        except (urllib3.exceptions.HTTPError, OSError):
            data = b""
        if not data:
            self._response.close()
        return data

    def close(self) -> None:
        """End a blocked ``read`` of another thread."""
        with suppress(OSError):  # ended already
            self._socket.shutdown(socket.SHUT_RDWR)

    def messages(self) -> Iterator[dict[str, Any]]:
        """The JSON objects of a stream that has one a line.

        Raises:
            DriverError: ``driver_unavailable``: this is no Docker Engine.
        """
        buffer = b""
        while data := self.read():
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                if line.strip():
                    yield _decoded(line)


class Engine:
    """One Engine. Errors of the SDK come out as DriverError."""

    def __init__(self, host: str, *, from_environment: bool) -> None:
        """Connect.

        Args:
            host: URL.
            from_environment: take TLS settings from ``DOCKER_TLS_VERIFY`` and ``DOCKER_CERT_PATH``.

        Raises:
            DriverError: ``driver_unavailable``.
        """
        with _translated():
            settings: dict[str, Any] = dict(kwargs_from_env()) if from_environment else {}
            settings |= {"base_url": host, "timeout": CONNECT_TIMEOUT_S, "max_pool_size": _CONNECTIONS}
            # Asked by a client of its own: one whose constructor asks cannot be closed when that fails.
            asking = APIClient(version=MINIMUM_DOCKER_API_VERSION, **settings)
            try:
                facts = asking.version(api_version=False)
            finally:
                asking.close()
            if not {"ApiVersion", "Version"} <= facts.keys():
                raise away(f"what answers at {host} is no Docker Engine", "check docker.host")
            self._client = APIClient(version=facts["ApiVersion"], **settings)
        self.version = str(facts["Version"])
        if self._client.base_url.startswith("http+docker"):
            self._client.trust_env = False  # no proxy and no .netrc for a socket
        self._client.timeout = CALL_TIMEOUT_S
        self.api_version = tuple(int(part) for part in self._client.api_version.split("."))

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()

    def ping(self) -> None:
        """Raise DriverError unless the Engine answers soon."""
        with _translated():
            self._client.get(f"{self._client.base_url}/_ping", timeout=PING_TIMEOUT_S).raise_for_status()

    def has_image(self, image: str) -> bool:
        """Whether the image is here."""
        with _translated(image):
            try:
                self._client.inspect_image(image)  # type: ignore[no-untyped-call]  # the stubs lack it
            except docker.errors.NotFound:
                return False
            return True

    def user_of(self, image: str) -> str:
        """The user that an image says its process has; empty: root."""
        with _translated(image):
            found = self._client.inspect_image(image)  # type: ignore[no-untyped-call]  # as above
            return str((found.get("Config") or {}).get("User") or "")

    def remaps_users(self) -> bool:
        """Whether root in a container is another user on the host."""
        with _translated():
            options = self._client.info().get("SecurityOptions") or []
            return any(option.startswith(("name=userns", "name=rootless")) for option in options)

    def open_pull(self, image: str) -> EngineStream:
        """Begin to fetch an image; ``follow_pull`` sees it through.

        Raises:
            DriverError: ``image_unavailable``, or ``driver_unavailable``.
        """
        repository, tag = parse_repository_tag(image)
        with _translated(image, pulling=True):
            registry, _ = docker.auth.resolve_repository_name(repository)
            credentials = docker.auth.get_config_header(self._client, registry)
            headers = {"X-Registry-Auth": credentials} if credentials else {}
            query = {"fromImage": repository, "tag": tag or "latest"}
            return self._open("POST", "images/create", query, headers)

    @staticmethod
    def follow_pull(stream: EngineStream, image: str, progress: Callable[[str], None]) -> None:
        """Read a pull to its end; ``progress`` takes lines for people.

        Raises:
            DriverError: ``image_unavailable``.
        """
        lines = PullProgress(image)
        for message in stream.messages():
            if error := message.get("error"):
                stream.close()
                raise _unavailable(image, str(error))
            if line := lines.feed(message, time.monotonic()):
                progress(line)

    def create(self, name: str, body: dict[str, Any]) -> str:
        """Make a container; its id.

        Raises:
            NameTakenError: there is one of that name.
            DriverError: ``image_unavailable``, ``invalid_service``, ``failed``, ``driver_unavailable``.
        """
        with _translated(body["Image"]):
            made = self._client.create_container_from_config(body, name)  # type: ignore[no-untyped-call]  # as above
            return str(made["Id"])

    def start(self, ref: str) -> None:
        """Start a container."""
        with _translated():
            self._client.start(ref)

    def inspect(self, ref: str) -> dict[str, Any] | None:
        """What the Engine knows of a container; None where there is none."""
        with _translated():
            try:
                found: dict[str, Any] = self._client.inspect_container(ref)
            except docker.errors.NotFound:
                return None
            return found

    def containers(self, labels: list[str]) -> list[dict[str, Any]]:
        """Containers that carry all the labels, running or not."""
        with _translated():
            found: list[dict[str, Any]] = self._client.containers(all=True, filters={"label": labels})
            return found

    def kill(self, ref: str, signal: str) -> None:
        """Send a signal; nothing happens where the container does not run."""
        with _translated(), _ignored(_NOT_FOUND, _CONFLICT):
            self._client.kill(ref, signal)

    def stop_now(self, ref: str) -> None:
        """Kill a container and keep the Engine from starting it again."""
        with _translated(), _ignored(_NOT_FOUND, _NOT_MODIFIED):
            self._client.stop(ref, timeout=0)

    def remove(self, ref: str) -> None:
        """Kill and remove a container and its anonymous volumes."""
        with _translated(), _ignored(_NOT_FOUND, _CONFLICT):
            self._client.remove_container(ref, v=True, force=True)

    def attach(self, ref: str) -> EngineStream:
        """The output from now on."""
        with _translated():
            return self._open("POST", f"containers/{ref}/attach", {"stream": 1, "stdout": 1, "stderr": 1})

    def logs(self, ref: str) -> EngineStream:
        """The output from the first byte, and what follows."""
        with _translated():
            return self._open("GET", f"containers/{ref}/logs", {"follow": 1, "stdout": 1, "stderr": 1})

    def close_stdin(self, ref: str) -> None:
        """Let an interactive container read the end of its input: the first client that leaves closes it."""
        with _translated(), _ignored(_NOT_FOUND, _CONFLICT):  # it may have ended already
            self._open("POST", f"containers/{ref}/attach", {"stream": 1, "stdin": 1}).close()

    def events(self, labels: list[str]) -> EngineStream:
        """``die``, ``oom`` and ``destroy`` events of containers that carry all the labels."""
        filters = {"type": ["container"], "event": ["die", "oom", "destroy"], "label": labels}
        with _translated():
            return self._open("GET", "events", {"filters": json.dumps(filters)})

    def _open(
        self, method: str, path: str, query: dict[str, Any], headers: dict[str, Any] | None = None
    ) -> EngineStream:
        url = f"{self._client.base_url}/v{self._client.api_version}/{path}"
        answer = self._client.request(
            method, url, params=query, headers=headers, stream=True, timeout=CALL_TIMEOUT_S
        )
        try:
            answer.raise_for_status()
        except requests.HTTPError as error:
            docker.errors.create_api_error_from_http_exception(error)
        return EngineStream(answer)


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise away("the Docker Engine sent what is not JSON")
    return message


@contextmanager
def _ignored(*statuses: int) -> Iterator[None]:
    try:
        yield
    except docker.errors.APIError as error:
        if error.status_code not in statuses:
            raise


@contextmanager
def _translated(image: str = "", *, pulling: bool = False) -> Iterator[None]:
    """Errors of the SDK and of what is below it to DriverError; the Engine's own sentence is kept."""
    try:
        yield
    except docker.errors.APIError as error:
        sentence = str(error.explanation or error).strip()
        if pulling:
            raise _unavailable(image, sentence) from error
        raise _of_answer(error.status_code or 500, sentence, image) from error
    except docker.errors.InvalidRepository as error:
        raise _unavailable(image, str(error)) from error
    except (requests.Timeout, TimeoutError) as error:
        raise away("the Docker Engine does not answer in time") from error
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise away(f"the Docker Engine cannot be reached: {error}") from error


def _of_answer(status: int, sentence: str, image: str) -> DriverError:
    lower = sentence.lower()
    if "is already in use by container" in lower:
        return NameTakenError(sentence)
    if image and status == _NOT_FOUND and "no such image" in lower:
        return _unavailable(image, sentence)
    if "exec:" in lower and ("not found" in lower or "no such file" in lower):
        return DriverError(sentence, reason="no_program")
    if "exec:" in lower and "permission denied" in lower:
        return DriverError(sentence, reason="no_permission")
    if status == _BAD_REQUEST or (image and (status == _NOT_FOUND or lower.startswith("invalid "))):
        return DriverError(sentence, reason="invalid_service")
    return DriverError(sentence)


def _unavailable(image: str, sentence: str) -> DriverError:
    return DriverError(
        f"the image {image} is not here and cannot be pulled: {sentence}",
        hint="check its name and the node's way to the registry, or docker load it",
        reason="image_unavailable",
    )
