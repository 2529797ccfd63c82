"""A throw-away fleet: a CA, keys and three real node processes on loopback, gone without a trace."""

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
import trio

from edgeorch.client.endpoint import Endpoint
from edgeorch.client.trio_client import AsyncClient
from edgeorch.errors import StartError, UnavailableError
from edgeorch.identity import Authority
from edgeorch.rest.tokens import Token, hash_of, new_text, write_tokens

MEMBERS = (("kitchen", "127.0.0.1"), ("garage", "127.0.0.2"), ("attic", "127.0.0.3"))
API_PORT, WIRE_PORT = 56001, 56002
START_S = 20.0
STOP_S = 8.0
LOG_LINES = 100 if os.environ.get("EDGEORCH_DEBUG") else 8
LOOK_S = 0.1
"""Membership has no event that a caller could wait for, so the fleet is looked at this often."""

CONFIG = """\
[node]
name = "{name}"
state_dir = "{folder}/state"
run_dir = "{folder}/run"
listen = ["{address}"]
labels = {{ room = "{name}" }}

[api]
port = {api_port}
# Callers on this machine need no token here. Never do this where other people have accounts.
anonymous_role = "submit"

[wire]
port = {wire_port}

[discovery]
seeds = [{seeds}]

[policy]
native = "any"
# The example mounts it, and with it the Docker socket: that is root on this machine.
host_paths = ["/var/run"]
privileged = true

[log]
format = "text"
"""


@dataclass
class Member:
    """One node of the demo."""

    name: str
    id: str
    address: str
    api_port: int
    wire_port: int
    folder: Path
    process: trio.Process | None = None
    descendants: list[psutil.Process] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Plain HTTP: on loopback the node takes it."""
        return f"http://{self.address}:{self.api_port}"

    @property
    def config(self) -> Path:
        """Its configuration file."""
        return self.folder / "edgeorch.toml"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / "node.log"

    def last_words(self) -> str:
        """The end of its log, indented."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            return "".join(f"\n  {line}" for line in lines)
        return ""


class Fleet:
    """Three nodes. ``stop`` must be called whatever happened; a second call of it is harmless."""

    def __init__(self) -> None:
        # A socket's path has room for 107 bytes, so a long TMPDIR will not do.
        base = "/tmp" if len(tempfile.gettempdir()) > 40 else None  # noqa: S108  mkdtemp makes it safe
        self.folder = Path(tempfile.mkdtemp(prefix="edgeorch-demo-", dir=base))
        self.token = new_text()
        self.members: list[Member] = []

    @property
    def ca(self) -> Path:
        """The fleet's CA certificate."""
        return self.folder / "ca" / "ca.pem"

    def client(self, member: Member) -> AsyncClient:
        """A client of one node, with the admin token."""
        return AsyncClient(endpoint=Endpoint(url=member.url, token=self.token))

    async def start(self) -> None:
        """Make keys and configurations, start the nodes, and return when all see each other.

        Raises:
            StartError: a node ended or took too long; with the end of its log.
        """
        self._prepare()
        try:
            with trio.fail_after(START_S):
                async with trio.open_nursery() as nursery:
                    for member in self.members:
                        nursery.start_soon(self._start, member)
                await self._together()
        except trio.TooSlowError:
            said = "".join(f"\n{member.name}:{member.last_words()}" for member in self.members)
            raise StartError(f"the nodes did not find each other within {START_S:.0f} s{said}") from None

    async def watch(self) -> None:
        """Return never; raise when a node ends by itself.

        Raises:
            StartError: with the end of its log.
        """
        async with trio.open_nursery() as nursery:
            for member in self.members:
                nursery.start_soon(_raise_at_end, member)

    async def stop(self) -> None:
        """SIGTERM, SIGKILL for what is left, then remove containers and files."""
        for member in self.members:
            if member.process is not None and member.process.returncode is None:
                member.descendants = _descendants(member.process.pid)
                member.process.terminate()
        with trio.move_on_after(STOP_S):
            for member in self.members:
                if member.process is not None:
                    await member.process.wait()
        self.kill()
        for member in self.members:
            if member.process is not None:
                await member.process.wait()
        await trio.to_thread.run_sync(self._clean)

    def kill(self) -> None:
        """SIGKILL at once: somebody is impatient."""
        for member in self.members:
            if member.process is not None and member.process.returncode is None:
                member.process.kill()

    def _prepare(self) -> None:
        authority = Authority.create(self.folder / "ca", "demo")
        for name, address in MEMBERS:
            issued = authority.issue(name, [address, "localhost"])
            folder = self.folder / name
            issued.write(folder)
            ports = (_free_port(address, API_PORT), _free_port(address, WIRE_PORT))
            self.members.append(Member(name, issued.entry.id, address, *ports, folder))
        created = datetime.now(UTC).replace(microsecond=0)
        tokens = write_tokens([Token(name="demo", role="admin", sha256=hash_of(self.token), created=created)])
        for member in self.members:
            others = [other for other in self.members if other is not member]
            seeds = ", ".join(f'"{other.address}:{other.wire_port}"' for other in others)
            (member.folder / "tokens.toml").write_bytes(tokens)
            values = {
                name: getattr(member, name) for name in ("name", "folder", "address", "api_port", "wire_port")
            }
            member.config.write_text(CONFIG.format(seeds=seeds, **values))

    async def _start(self, member: Member) -> None:
        """Start one node; returns when it has said READY=1 (sd_notify(3))."""
        notify = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with notify, member.log.open("wb") as log:
            path = member.folder / "notify"
            await notify.bind(str(path))
            member.process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "edgeorch", "node", "--config", str(member.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A session of its own: Ctrl-C is for us, we tell the nodes.
                start_new_session=True,
                env=_clean_environment() | {"NOTIFY_SOCKET": str(path)},
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_raise_at_end, member)
                while b"READY=1" not in (await notify.recv(4096)).split(b"\n"):
                    pass
                nursery.cancel_scope.cancel()

    async def _together(self) -> None:
        """Until each node sees all of them alive, with a score."""
        names = {member.name for member in self.members}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch)
            for member in self.members:
                async with self.client(member) as client:
                    while True:
                        with contextlib.suppress(UnavailableError):
                            seen = await client.nodes()
                            if names <= {
                                node.name for node in seen if node.state == "alive" and node.score.value > 0
                            }:
                                break
                        await trio.sleep(LOOK_S)
            nursery.cancel_scope.cancel()

    def _clean(self) -> None:
        """Whatever outlived its node: services and runners of a killed node, containers, files."""
        known = [process for member in self.members for process in member.descendants]
        left = [process for process in {*known, *_processes_in(self.folder)} if process.is_running()]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(left, timeout=3)
        _remove_containers([member.id for member in self.members])
        shutil.rmtree(self.folder, ignore_errors=True)


async def _raise_at_end(member: Member) -> None:
    assert member.process is not None  # noqa: S101  it was started before
    code = await member.process.wait()
    raise StartError(f"node {member.name} ended with code {code}:{member.last_words()}")


def _clean_environment() -> dict[str, str]:
    """Ours, without settings that would reach into the nodes."""
    ours = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "INVOCATION_ID")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ours and (name == "EDGEORCH_DEBUG" or not name.startswith("EDGEORCH_"))
    }


def _free_port(address: str, wanted: int) -> int:
    """The wanted port, or a free one where it is taken.

    Raises:
        StartError: the address cannot be used.
    """
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise StartError(f"{address} cannot be used: {error.strerror}") from None
            return int(probe.getsockname()[1])
    raise StartError(f"no free port on {address}")


def _descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _processes_in(folder: Path) -> list[psutil.Process]:
    """Processes that work below the folder, or name it on their command line (a runner does)."""
    found = []
    prefix = f"{folder}/"
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid():
                continue
            if f"{process.cwd()}/".startswith(prefix) or any(prefix in word for word in process.cmdline()):
                found.append(process)
    return found


def _remove_containers(node_ids: list[str]) -> None:
    """Containers outlive their node on purpose; not here."""
    import docker
    import docker.errors
    import requests

    with contextlib.suppress(docker.errors.DockerException, requests.RequestException, OSError):
        engine = docker.from_env(timeout=5)
        with contextlib.closing(engine):
            for node_id in node_ids:
                for container in engine.containers.list(
                    all=True, filters={"label": f"edgeorch.node={node_id}"}
                ):
                    container.remove(force=True, v=True)
