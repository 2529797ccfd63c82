"""What ``edgeorch doctor`` looks at: how each thing stands, and what to do where it does not stand well."""

import errno
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeorch.addresses import usable_addresses
from edgeorch.client.endpoint import is_loopback, node_url
from edgeorch.config import Loaded
from edgeorch.errors import EdgeorchError, NodeUnreachableError
from edgeorch.host import clock_synchronised, why_volatile
from edgeorch.secret_files import SecretFiles

if TYPE_CHECKING:
    from edgeorch.runner import protocol

RELEASED = 1_760_000_000.0
"""A clock before this time (October 2025) is wrong: this software did not exist."""
DISK_WARNING = 1 << 30
DISK_FAILURE = 64 << 20
IFF_MULTICAST = 0x1000
"""Flag of an interface (netdevice(7))."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    check: str
    state: Literal["ok", "warning", "failed"]
    detail: str
    fix: str = ""


Check = Callable[[Loaded], Iterator[Finding]]


def clock(loaded: Loaded) -> Iterator[Finding]:  # noqa: ARG001  every check takes it
    """Certificates need a clock that is right within a day."""
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    fix = "turn time synchronisation on: timedatectl set-ntp true"
    if now < RELEASED:
        yield Finding("clock", "failed", f"{shown} is in the past", fix)
    elif clock_synchronised() is False:
        yield Finding("clock", "warning", f"{shown}, not synchronised", fix)
    else:
        yield Finding("clock", "ok", shown)


def certificates(loaded: Loaded) -> Iterator[Finding]:
    """The node's certificate, its key and the fleet's CA."""
    from structlog.testing import capture_logs

    from edgeorch.identity import WARN_DAYS, load_identity

    pki = loaded.resolve(loaded.config.pki.dir)
    key = pki / "node.key"
    try:
        # What the node would log becomes lines of the table.
        with capture_logs() as said:
            identity = load_identity(loaded, wall=time.time)
    except EdgeorchError as error:
        there = (pki / "node.pem").exists()
        fix = (
            error.hint if there else f"`edgeorch keys issue` on the controller, then copy its files to {pki}"
        )
        yield Finding("certificate", "failed", error.detail, fix)
        return
    days = (identity.not_after - time.time()) / 86_400
    detail = f"{identity.name} ({identity.node_id}) of fleet {identity.fleet}, {days:.0f} days left"
    if days < WARN_DAYS:
        fix = "run playbooks/rotate-keys.yml on the controller"
        yield Finding("certificate", "warning", detail, fix)
    else:
        yield Finding("certificate", "ok", detail)
    mode = stat.S_IMODE(key.stat().st_mode)
    # Installed, it is root's, and the node's group may read it.
    if mode & 0o037:
        fix = f"chmod u=rw,g=r,o= {key}"
        yield Finding("key file", "failed", f"{key} is open to others (mode {mode:04o})", fix)
    else:
        yield Finding("key file", "ok", f"{key}, mode {mode:04o}")
        for line in said:
            yield Finding(
                "certificate files",
                "warning",
                str(line["event"]),
                str(line.get("fix", "issue and copy the files again")),
            )


def policy(loaded: Loaded) -> Iterator[Finding]:
    """What the policy gives away, and files of it that cannot be used."""
    from edgeorch.policy import Policy

    try:
        _, said = Policy.load(loaded, node=loaded.name, engine_socket="")
    except EdgeorchError as error:
        yield Finding("policy", "failed", error.detail, "correct it in edgeorch.toml")
        return
    for line in said:
        yield Finding(
            "policy", "warning", line, "change it, unless it is meant; then systemctl reload edgeorch"
        )
    if not said:
        native = loaded.config.policy.native
        yield Finding("policy", "ok", f"native is {native}, nothing that makes a caller root")


def ports(loaded: Loaded) -> Iterator[Finding]:
    """Both ports must be free, or ours."""
    addresses = loaded.config.node.listen or ("0.0.0.0",)  # noqa: S104  what the node binds by default
    for name, port in (("REST port", loaded.config.api.port), ("node port", loaded.config.wire.port)):
        wrong = {address: reason for address in addresses if (reason := _bind_error(address, port))}
        if not wrong:
            yield Finding(name, "ok", f"{port} is free")
        elif all(reason == errno.EADDRINUSE for reason in wrong.values()):
            if _answers(loaded):
                yield Finding(name, "ok", f"{port} is in use, and a node answers here")
            else:
                fix = f"see who has it: ss -ltnp 'sport = :{port}'; or change {_port_key(name)}"
                yield Finding(name, "failed", f"{port} is in use by another program", fix)
        else:
            reasons = ", ".join(f"{address}: {os.strerror(reason)}" for address, reason in wrong.items())
            yield Finding(name, "failed", f"{port} cannot be bound: {reasons}", "check node.listen")


def interfaces(loaded: Loaded) -> Iterator[Finding]:
    """Addresses that other nodes can reach, and multicast for discovery."""
    listen = loaded.config.node.listen
    if listen and all(is_loopback(address) for address in listen):
        yield Finding(
            "network", "warning", "listens on loopback only", "other machines cannot reach this node"
        )
        return
    found = usable_addresses(loaded.config.node.networks)
    if not found:
        yield Finding("network", "failed", "no usable address", "connect a network, or check node.networks")
        return
    yield Finding("network", "ok", ", ".join(f"{address} ({name})" for name, address in found))
    if loaded.config.discovery.mdns:
        names = sorted({name for name, _ in found if _multicast(name)})
        if names:
            yield Finding("multicast", "ok", f"on {', '.join(names)}")
        else:
            fix = "list other nodes in discovery.seeds"
            yield Finding("multicast", "warning", "no interface has multicast: mDNS finds nobody", fix)


def docker(loaded: Loaded) -> Iterator[Finding]:
    """The Docker Engine, where containers are to run."""
    if "container" not in loaded.config.executor.drivers:
        yield Finding("docker", "ok", "not wanted (executor.drivers)")
        return
    import docker as sdk
    import docker.errors
    import requests

    host = loaded.config.docker.host or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    engine = None
    try:
        engine = sdk.DockerClient(base_url=host, timeout=5)
        about = engine.version()
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        text = str(error).lower()
        fix = "install it (Debian: apt install docker.io), or set docker.host"
        if "permission" in text:
            fix = f"let the node's user use {host}, for instance: adduser USER docker"
        elif "refused" in text:
            fix = "start it: systemctl start docker"
        yield Finding("docker", "warning", f"no answer at {host}: only native services run here", fix)
    else:
        yield Finding("docker", "ok", f"Engine {about.get('Version', '?')} at {host}")
    finally:
        if engine is not None:
            engine.close()


def runner(loaded: Loaded) -> Iterator[Finding]:
    """The process that starts native services, what limits them and what keeps them apart."""
    from edgeorch.runner import protocol

    if "native" not in loaded.config.executor.drivers:
        yield Finding("runner", "ok", "not wanted (executor.drivers)")
        return
    path = loaded.config.runner.socket
    if not path:
        yield Finding("runner", "ok", "started by the node, with the node's own user")
        return
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(3)
        try:
            link.connect(path)
            said = _first_word(link)
        except OSError as error:
            reason = error.strerror or str(error)
            fix = "systemctl start edgeorch-runner"
            yield Finding("runner", "failed", f"{path}: {reason}", fix)
            return
    if isinstance(said, protocol.Failed):
        yield Finding("runner", "failed", said.detail, "run this as root or as the node's user")
        return
    yield Finding("runner", "ok", path)
    if any(word.endswith(":processes") for word in said.limits):
        yield Finding("limits", "ok", ", ".join(said.limits))
    else:
        fix = "let the runner be a user of its own, not root, or a unit with TasksMax="
        yield Finding("limits", "warning", "nothing bounds how many processes services start", fix)
    if said.isolation == "none":
        fix = "a kernel with Landlock (5.19 or newer), and --close in edgeorch-runner.service"
        yield Finding("isolation", "warning", "services can read each other's folders", fix)
    else:
        yield Finding("isolation", "ok", f"{said.isolation} keeps services out of each other's folders")


def _first_word(link: socket.socket) -> "protocol.Welcome | protocol.Failed":
    """What the runner says to a new connection.

    Raises:
        OSError: it says nothing that makes sense.
    """
    from edgeorch.runner import protocol

    inbox = protocol.replies()
    while data := link.recv(65_536):
        try:
            for message in inbox.feed(data):
                if isinstance(message, protocol.Welcome | protocol.Failed):
                    return message
        except protocol.FrameError as error:
            raise OSError(0, str(error)) from None
    raise ConnectionAbortedError(errno.ECONNABORTED, "it says nothing")


def folders(loaded: Loaded) -> Iterator[Finding]:
    """State and sockets can be written, and there is room."""
    for name, text in (
        ("state folder", loaded.config.node.state_dir),
        ("socket folder", loaded.config.node.run_dir),
    ):
        path = loaded.resolve(text)
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            fix = f"install -d -o USER {path}; or run this as the node's user"
            yield Finding(name, "failed", f"{there} cannot be written by this user", fix)
            continue
        yield Finding(name, "ok", str(path) if there == path else f"{path} will be made")
        if name == "socket folder" and (missing := SecretFiles(path).missing):
            fix = "set node.run_dir to a folder in memory, such as /run/edgeorch"
            yield Finding("secrets", "warning", f"tasks that bring secrets cannot run here: {missing}", fix)
        if name == "state folder":
            yield _space(there)
            why = "" if loaded.config.node.volatile else why_volatile(there)
            if why:
                fix = "move node.state_dir to a disk, or accept it: node.volatile = true"
                yield Finding("state", "warning", f"{why}: a restart of this machine loses tasks", fix)


def answering(loaded: Loaded) -> Iterator[Finding]:
    """The running node's own word."""
    from edgeorch.client.endpoint import resolve
    from edgeorch.client.plain_client import Client

    url = node_url(loaded.config)
    ca = loaded.resolve(loaded.config.pki.dir) / "ca.pem"
    try:
        with Client(endpoint=resolve(url, ca=ca if ca.exists() else None)) as client:
            client.ready()
    except NodeUnreachableError:
        fix = "start it: systemctl start edgeorch, or edgeorch node"
        yield Finding("node", "warning", f"no node answers at {url}", fix)
    except EdgeorchError as error:
        yield Finding("node", "failed", f"{url}: {error.detail}", error.hint)
    else:
        yield Finding("node", "ok", f"ready at {url}")


CHECKS: tuple[Check, ...] = (
    clock,
    certificates,
    policy,
    ports,
    interfaces,
    docker,
    runner,
    folders,
    answering,
)


def _space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    detail = f"{free / (1 << 30):.1f} GiB free at {folder}"
    fix = "make room, or lower store.retention_bytes"
    if free < DISK_FAILURE:
        return Finding("disk", "failed", detail, fix)
    return Finding("disk", "warning", detail, fix) if free < DISK_WARNING else Finding("disk", "ok", detail)


def _bind_error(address: str, port: int) -> int:
    """The error number of binding, 0 where it works. Nothing listens: no caller can come in."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno or errno.EIO
    return 0


def _answers(loaded: Loaded) -> bool:
    return next(answering(loaded)).state != "warning"


def _port_key(name: str) -> str:
    return "api.port" if name == "REST port" else "wire.port"


def _multicast(interface: str) -> bool:
    try:
        return bool(int(Path("/sys/class/net", interface, "flags").read_text("ascii"), 16) & IFF_MULTICAST)
    except OSError:
        return True
