"""One frozen tree of settings: every default of a node in one place.

A value comes from ``EDGEORCH_SECTION_KEY`` in the environment, else from the TOML file, else from here.
"""

import difflib
import os
import re
import socket
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgeorch.errors import ConfigError

DEFAULT_PATH = Path("/etc/edgeorch/edgeorch.toml")
NativeRule = Literal["auto", "any", "listed", "off"]
Namespace = Literal["network", "pid", "ipc", "uts", "userns"]
PolicyRole = Literal["submit", "admin"]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e10)]
"""Finite: what is never over would have to be a case of its own wherever one counts with it."""
Count = Annotated[int, msgspec.Meta(ge=1)]
Limit = Annotated[float, msgspec.Meta(ge=0, le=1e10)]
Whole = Annotated[int, msgspec.Meta(ge=0)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the sections below; a field's docstring is its documentation."""


class Node(Section, frozen=True, kw_only=True):
    """Who this node is and where it keeps things."""

    name: str = ""
    """Shown to people; empty: the host name."""
    labels: dict[str, str] = {}
    """Free labels for placement constraints."""
    state_dir: str = "/var/lib/edgeorch"
    """Database, task folders."""
    run_dir: str = "/run/edgeorch"
    """Sockets."""
    listen: tuple[str, ...] = ()
    """Addresses to bind; empty: all, filtered by ``networks`` and never a container bridge."""
    networks: tuple[str, ...] = ()
    """CIDRs of the networks that may be used and announced; empty: all."""
    volatile: bool = False
    """The state folder is meant to be in memory or on an overlay: do not point it out."""


class Api(Section, frozen=True, kw_only=True):
    """The REST listener."""

    port: Port = 56001
    max_body: Count = 1 << 20
    """Bytes; larger bodies get 413."""
    max_connections: Count = 1000
    max_connections_per_address: Count = 400
    """So that one address cannot take every connection."""
    anonymous_role: Literal["none", "read", "submit", "admin"] = "none"
    """Role of callers on loopback without a token."""
    tokens: str = "tokens.toml"
    """Hashed tokens, relative to the configuration file."""
    tls_cert: str = ""
    """Certificate chain for REST; empty: the node's own."""
    tls_key: str = ""
    keep_alive_s: Positive = 75.0
    """An idle connection is closed after this time."""
    body_timeout_s: Positive = 10.0
    """A request must have arrived within this time."""
    write_timeout_s: Positive = 30.0
    """A client that does not read for this long is closed."""
    failed_logins_per_minute: Count = 30
    """Per address; more get 429."""
    requests_per_second: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Per token; 0: no limit."""


class Wire(Section, frozen=True, kw_only=True):
    """The node-to-node listener."""

    port: Port = 56002
    max_links: Count = 64
    """Above this many peers, links open on demand."""


class Pki(Section, frozen=True, kw_only=True):
    """Certificates, relative to the configuration file."""

    dir: str = "pki"
    """Holds ca.pem, node.pem, node.key and crl.pem."""
    node_id: str = "node_id"


class Discovery(Section, frozen=True, kw_only=True):
    """Who may exist."""

    mdns: bool = True
    seeds: tuple[str, ...] = ()
    """``HOST`` or ``HOST:PORT`` of nodes to try."""


class Membership(Section, frozen=True, kw_only=True):
    """Who is alive. Times without an answer."""

    probe_s: Positive = 1.0
    suspect_s: Positive = 2.0
    dead_s: Positive = 4.0
    forget_s: Positive = 86_400.0
    """A dead or left node is dropped from the table after this time."""


class Executor(Section, frozen=True, kw_only=True):
    """What runs here."""

    slots: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Attempts at a time; 0: twice the CPUs."""
    drivers: tuple[Literal["container", "native"], ...] = ("container", "native")
    grace_s: Positive = 10.0
    """Between SIGTERM and SIGKILL when an attempt is cancelled."""


class Docker(Section, frozen=True, kw_only=True):
    """The Docker Engine."""

    host: str = ""
    """Empty: DOCKER_HOST, else the default socket."""


class Runner(Section, frozen=True, kw_only=True):
    """The process that starts native services."""

    socket: str = ""
    """Its socket; empty: the node starts a runner of its own, with its own user."""


class Policy(Section, frozen=True, kw_only=True):
    """What may run here, for whom."""

    native: NativeRule | dict[PolicyRole, NativeRule] = "auto"
    """``auto``: any where the runner is another user, else any for admin and listed for submit."""
    services: str = "services.d"
    """Folder of the listed services, relative to the configuration file."""
    apps: str = "/var/edge-orchestration/apps"
    """Folder of the original's ``.conf`` files; they count as listed."""
    requester: Literal["token", "claimed"] = "token"
    """Whose name must be in ``AllowedRequester``; ``claimed``: also the ``ServiceRequester`` of a request."""
    images: tuple[str, ...] = ("*",)
    """Images by pattern (``ghcr.io/acme/*``) or digest (``sha256:…``), and files of such lines (``/…``)."""
    capabilities: tuple[str, ...] = ()
    """Capabilities that containers may add."""
    namespaces: tuple[Namespace, ...] = ()
    """Namespaces of the host that containers may share."""
    devices: tuple[str, ...] = ()
    """Devices that containers may have, as patterns (``/dev/video*``); ``gpus``: those of ``--gpus``."""
    host_paths: tuple[str, ...] = ()
    """Host folders that containers may mount; never a Docker socket, which ``privileged`` guards."""
    volumes: tuple[str, ...] = ()
    """Volumes of the Engine that containers may mount by name, as patterns (``cache-*``)."""
    networks: tuple[str, ...] = ()
    """Networks of the Engine that containers may join, as patterns (``web-*``); bridge and none are free."""
    privileged: bool = False
    """Allow privileged containers, the Docker socket, and all that the lists above name but folders."""
    option_files: bool = False
    """Allow docker run options that read files of the node (``--env-file``, ``--label-file``)."""
    max_cpus: Limit | dict[PolicyRole, Limit] = 0.0
    """CPUs of a task; 0: no limit. This and the next four: for all, or a table of submit and admin."""
    max_memory: Whole | dict[PolicyRole, Whole] = 0
    """Bytes of a task; with ``max_cpus`` and ``max_timeout_s`` also what a task gets that names none."""
    max_timeout_s: Limit | dict[PolicyRole, Limit] = 0.0
    """Running time of an attempt."""
    max_deadline_s: Limit | dict[PolicyRole, Limit] = 0.0
    """Of a task from its acceptance."""
    max_tasks: Whole | dict[PolicyRole, Whole] = 100_000
    """Open tasks of one token at this node."""
    callbacks: tuple[str, ...] = ("*",)
    """Hosts (with ``*``) and networks that callbacks may go to; see ``policy.callback_targets``."""


class Output(Section, frozen=True, kw_only=True):
    """What services print."""

    max_bytes: Count = 10 << 20
    """Kept per stream of an attempt; more is dropped with a visible marker."""
    tail_bytes: Annotated[int, msgspec.Meta(ge=0, le=262_144)] = 65_536
    """Kept per stream by the origin with the result."""


class Store(Section, frozen=True, kw_only=True):
    """How long ended tasks, and who did what, are kept."""

    retention_s: Positive = 604_800.0
    """By a clock that nobody sets, which adds at most a day for any time that the machine was off."""
    retention_bytes: Count = 1 << 30
    """Of output; the oldest goes first."""
    audit_s: Positive = 7_776_000.0
    """How long it is remembered who did what."""
    audit_bytes: Count = 32 << 20
    """Of these records; the oldest go first."""
    stall_limit_s: Positive = 300.0
    """A disk that answers nothing for this long ends the node, which systemd then starts again."""


class Lease(Section, frozen=True, kw_only=True):
    """How origin and target agree that an attempt is still wanted."""

    lease_s: Positive = 10.0
    renew_s: Positive = 3.0
    lost_after_s: Positive = 3600.0
    """An at-most-once task on a vanished node is ``lost`` after this time."""


class Scoring(Section, frozen=True, kw_only=True):
    """How nodes are compared."""

    formula: Literal["edgeorch", "baobab"] = "edgeorch"
    weight: Positive = 1.0
    """Multiplies this node's score."""


class Callbacks(Section, frozen=True, kw_only=True):
    """Status callbacks."""

    timeout_s: Positive = 10.0
    give_up_s: Positive = 86_400.0
    """A callback that was not taken for this long is dropped and logged."""


class Log(Section, frozen=True, kw_only=True):
    """What is said on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"
    """``auto``: the journal's own protocol under systemd, else text."""


class Config(Section, frozen=True, kw_only=True):
    """Everything a node can be told."""

    node: Node = Node()
    api: Api = Api()
    wire: Wire = Wire()
    pki: Pki = Pki()
    discovery: Discovery = Discovery()
    membership: Membership = Membership()
    executor: Executor = Executor()
    docker: Docker = Docker()
    runner: Runner = Runner()
    policy: Policy = Policy()
    output: Output = Output()
    store: Store = Store()
    lease: Lease = Lease()
    scoring: Scoring = Scoring()
    callbacks: Callbacks = Callbacks()
    log: Log = Log()


@dataclass(frozen=True)
class Loaded:
    """A configuration and where it came from.

    Attributes:
        config: the validated tree.
        path: the file, which also anchors relative paths; None when there was none.
        origins: ``section.key`` to ``default``, the file's path, or the variable's name.
    """

    config: Config
    path: Path | None
    origins: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the configuration start from."""
        return (self.path or DEFAULT_PATH).parent

    def resolve(self, path: str) -> Path:
        """A configured path as an absolute one."""
        return self.folder / path

    @property
    def name(self) -> str:
        """The node's name."""
        return self.config.node.name or socket.gethostname().partition(".")[0]

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """(``section.key``, value, origin) of every setting, for ``--print-config``."""
        for section in Config.__struct_fields__:
            part = getattr(self.config, section)
            for key in part.__struct_fields__:
                dotted = f"{section}.{key}"
                yield dotted, getattr(part, key), self.origins.get(dotted, "default")


def load(path: Path | None = None, env: Mapping[str, str] = os.environ) -> Loaded:
    """Read the file (the default path when it exists) and the environment.

    Raises:
        ConfigError: the file cannot be read or parsed, or a setting is unknown or has a wrong value. The
            message names file or variable, key and reason, and suggests the nearest key for a typo.
    """
    tree = _read(path or DEFAULT_PATH, optional=path is None)
    if path is None and tree is not None:
        path = DEFAULT_PATH
    tree = tree or {}
    origins: dict[str, str] = {}
    for section, part in tree.items():
        _check_name(section, Config.__struct_fields__, f"{path}", "section")
        if not isinstance(part, dict):
            raise ConfigError(f"{path}: {section} must be a section, [{section}]")
        for key in part:
            _check_name(key, _section(section).__struct_fields__, f"{path}", f"key in [{section}]")
            origins[f"{section}.{key}"] = str(path)
    for section, key, name, text in _from_env(env):
        tree.setdefault(section, {})[key] = _parse_env(section, key, name, text)
        origins[f"{section}.{key}"] = f"${name}"
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        reason, dotted = _reason_and_key(str(error))
        raise ConfigError(f"{origins.get(dotted, path)}: {dotted}: {reason}") from None
    _check(config, origins)
    absolute = path.resolve() if path else None
    return Loaded(config=config, path=absolute, origins=types.MappingProxyType(origins))


def for_role(value: Any, role: str, *, default: Any) -> Any:  # noqa: ANN401  any setting
    """A setting that may be a table of roles. Who is no admin counts as ``submit``.

    A role that the table leaves out gets the default.
    """
    return value.get("admin" if role == "admin" else "submit", default) if isinstance(value, dict) else value


def _read(path: Path, *, optional: bool) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        if optional and isinstance(error, FileNotFoundError):
            return None
        raise ConfigError(f"{path}: {error.strerror}", hint="check the path and its permissions") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from None


def _reason_and_key(text: str) -> tuple[str, str]:
    """What msgspec says, as the reason and ``section.key``: ``REASON - at [`key` in ]`$.section.key…```."""
    reason, _, where = text.rpartition(" - at ")
    found = re.search(r"`\$\.(\w+\.\w+)", where)
    return (reason, found[1]) if found else (text, "")


def _section(name: str) -> type[Section]:
    return typing.cast("type[Section]", Config.__annotations__[name])


def _check_name(name: str, known: tuple[str, ...], source: str, what: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise ConfigError(f"{source}: unknown {what}: {name!r}", hint=hint)


def _from_env(env: Mapping[str, str]) -> Iterator[tuple[str, str, str, str]]:
    """(section, key, variable, text) of each variable that names a section; others are not ours."""
    for name, text in sorted(env.items()):
        section, _, key = name.removeprefix("EDGEORCH_").lower().partition("_")
        # EDGEORCH_NODE, EDGEORCH_TOKEN and EDGEORCH_URL mean something else: no key, no setting.
        if not name.startswith("EDGEORCH_") or section not in Config.__struct_fields__ or not key:
            continue
        _check_name(key, _section(section).__struct_fields__, f"${name}", f"key in [{section}]")
        yield section, key, name, text


def _parse_env(section: str, key: str, name: str, text: str) -> Any:  # noqa: ANN401  any TOML value
    """The text of a variable as the setting's type: plain text, a comma list, or a TOML value."""
    kind = typing.get_type_hints(_section(section))[key]
    if kind is str:
        return text
    if typing.get_origin(kind) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        if any(char in text for char in "{}[]\n"):
            raise ConfigError(f"${name}: {text!r} is not a TOML value") from None
        return text


def _check(config: Config, origins: Mapping[str, str]) -> None:
    """Rules over more than one value, or that a type cannot say."""

    def fail(reason: str, *keys: str) -> typing.NoReturn:
        # Defaults go together, so at least one of the keys was set; it is the one to look at.
        key = next(key for key in keys if key in origins)
        raise ConfigError(f"{origins[key]}: {key}: {reason}")

    member = config.membership
    if not member.probe_s < member.suspect_s < member.dead_s:
        keys = ("membership.dead_s", "membership.suspect_s", "membership.probe_s")
        fail("needs membership.probe_s < suspect_s < dead_s", *keys)
    if not config.lease.renew_s * 2 < config.lease.lease_s:
        fail("lease.renew_s must be less than half of lease.lease_s", "lease.renew_s", "lease.lease_s")
    for network in config.node.networks:
        try:
            ip_network(network)
        except ValueError as error:
            fail(f"{error}", "node.networks")
    if bool(config.api.tls_cert) != bool(config.api.tls_key):
        fail("api.tls_cert and api.tls_key go together", "api.tls_cert", "api.tls_key")
    places = [("host_paths", path, "/", "must be absolute") for path in config.policy.host_paths]
    devices = [name for name in config.policy.devices if name != "gpus"]
    places += [("devices", name, "/dev", "must start with /dev, or be gpus") for name in devices]
    for key, place, root, reason in places:
        if not place.startswith(root):
            fail(f"{place!r} {reason}", f"policy.{key}")
