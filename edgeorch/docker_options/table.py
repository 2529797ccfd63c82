"""The options of ``docker run`` that a container service may use, and those that it may not, as data."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["flag", "text", "list", "integer", "size", "duration", "decimal"]
"""How the value is written; a ``flag`` needs none, a ``list`` may be given more than once."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        name: long name without dashes.
        kind: how the value is written.
        group: heading for people.
        short: one letter, or empty.
        aliases: other long names.
    """

    name: str
    kind: Kind
    group: str
    short: str = ""
    aliases: tuple[str, ...] = ()


def _group(group: str, *rows: tuple[str, Kind] | tuple[str, Kind, str]) -> tuple[Option, ...]:
    """Rows are ``("name,alias", kind)`` with the short letter as an optional third part."""
    options: list[Option] = []
    for row in rows:
        name, *aliases = row[0].split(",")
        short = row[2] if len(row) == 3 else ""
        options.append(Option(name, row[1], group, short, tuple(aliases)))
    return tuple(options)


OPTIONS: tuple[Option, ...] = (
    *_group(
        "general",
        ("attach", "list", "a"),
        ("device", "list"),
        ("device-cgroup-rule", "list"),
        ("domainname", "text"),
        ("entrypoint", "text"),
        ("env", "list", "e"),
        ("env-file", "list"),
        ("gpus", "list"),
        ("group-add", "list"),
        ("hostname", "text", "h"),
        ("interactive", "flag", "i"),
        ("label", "list", "l"),
        ("label-file", "list"),
        ("read-only", "flag"),
        ("restart", "text"),
        ("rm", "flag"),
        ("stop-signal", "text"),
        ("stop-timeout", "integer"),
        ("sysctl", "list"),
        ("tty", "flag", "t"),
        ("ulimit", "list"),
        ("user", "text", "u"),
        ("workdir", "text", "w"),
    ),
    *_group(
        "security",
        ("cap-add", "list"),
        ("cap-drop", "list"),
        ("privileged", "flag"),
        ("security-opt", "list"),
        ("userns", "text"),
    ),
    *_group(
        "network",
        ("add-host", "list"),
        ("dns", "list"),
        ("dns-option,dns-opt", "list"),
        ("dns-search", "list"),
        ("expose", "list"),
        ("ip", "text"),
        ("ip6", "text"),
        ("link", "list"),
        ("link-local-ip", "list"),
        ("mac-address", "text"),
        ("network,net", "list"),
        ("network-alias,net-alias", "list"),
        ("publish", "list", "p"),
        ("publish-all", "flag", "P"),
    ),
    *_group(
        "logging and storage",
        ("log-driver", "text"),
        ("log-opt", "list"),
        ("mount", "list"),
        ("storage-opt", "list"),
        ("tmpfs", "list"),
        ("volume", "list", "v"),
        ("volume-driver", "text"),
        ("volumes-from", "list"),
    ),
    *_group(
        "health",
        ("health-cmd", "text"),
        ("health-interval", "duration"),
        ("health-retries", "integer"),
        ("health-start-period", "duration"),
        ("health-timeout", "duration"),
        ("no-healthcheck", "flag"),
    ),
    *_group(
        "resources",
        ("blkio-weight", "integer"),
        ("blkio-weight-device", "list"),
        ("cpu-period", "integer"),
        ("cpu-quota", "integer"),
        ("cpu-rt-period", "integer"),
        ("cpu-rt-runtime", "integer"),
        ("cpu-shares", "integer", "c"),
        ("cpus", "decimal"),
        ("cpuset-cpus", "text"),
        ("cpuset-mems", "text"),
        ("device-read-bps", "list"),
        ("device-read-iops", "list"),
        ("device-write-bps", "list"),
        ("device-write-iops", "list"),
        ("kernel-memory", "size"),
        ("memory", "size", "m"),
        ("memory-reservation", "size"),
        ("memory-swap", "size"),
        ("memory-swappiness", "integer"),
        ("oom-kill-disable", "flag"),
        ("oom-score-adj", "integer"),
        ("pids-limit", "integer"),
    ),
    *_group(
        "low level",
        ("cgroup-parent", "text"),
        ("init", "flag"),
        ("ipc", "text"),
        ("isolation", "text"),
        ("pid", "text"),
        ("runtime", "text"),
        ("shm-size", "size"),
        ("uts", "text"),
    ),
)

_WINDOWS = "it exists for Windows only"

UNSUPPORTED: dict[str, str] = {
    "cidfile": "it would write a file on the node; the task shows its container",
    "detach": "a task always runs detached, so leave it out",
    "detach-keys": "there is no terminal to detach from",
    "disable-content-trust": "content trust is not checked",
    "help": "it starts nothing",
    "name": "the container is named after its task, so that every attempt has a name of its own",
    "platform": "the image is taken for the node's own platform; use a placement constraint on arch",
    "pull": "an image is pulled when it is absent",
    "quiet": "pull progress goes to the task's events",
    "sig-proxy": "there is no terminal that sends signals; cancel the task",
    "cpu-count": _WINDOWS,
    "cpu-percent": _WINDOWS,
    "io-maxbandwidth": _WINDOWS,
    "io-maxiops": _WINDOWS,
}
"""Options of docker run that are refused by name, with the reason."""

UNSUPPORTED_SHORT: dict[str, str] = {"d": "detach", "q": "quiet"}

BY_NAME: dict[str, Option] = {name: option for option in OPTIONS for name in (option.name, *option.aliases)}
BY_SHORT: dict[str, Option] = {option.short: option for option in OPTIONS if option.short}
