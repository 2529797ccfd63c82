"""Which node to ask, as whom, and which CA to trust.

The first that says something wins, value by value: arguments, ``EDGEORCH_URL``, ``EDGEORCH_TOKEN`` and
``EDGEORCH_CA``, ``~/.config/edgeorch/config.toml`` (``url``, ``token``, ``ca``), and on a node its own
configuration in ``/etc/edgeorch``.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from edgeorch import config
from edgeorch.errors import ConfigError, InvalidRequestError

DEFAULT_PORT = 56001
KEYS = ("url", "token", "ca")


@dataclass(frozen=True)
class Endpoint:
    """A node's REST address and how to talk to it.

    Attributes:
        url: ``https://HOST:PORT``, or ``http://`` on loopback.
        token: bearer token, or empty.
        ca: PEM file with the fleet's CA; empty: the system's trust store.
        origins: where each value came from, for people.
    """

    url: str
    token: str = field(default="", repr=False)
    ca: str = ""
    origins: Mapping[str, str] = field(default_factory=dict)


def resolve(
    url: str | None = None,
    token: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    *,
    env: Mapping[str, str] = os.environ,
    node_config: Path = config.DEFAULT_PATH,
) -> Endpoint:
    """Put the endpoint together.

    Raises:
        ConfigError: the user's file cannot be read or says something that we do not know.
        InvalidRequestError: the URL is none, or is plain http to another machine.
    """
    sources: list[tuple[str, Mapping[str, str]]] = [
        ("arguments", {key: str(value) for key, value in zip(KEYS, (url, token, ca), strict=True) if value}),
        (
            "environment",
            {key: env[f"EDGEORCH_{key.upper()}"] for key in KEYS if env.get(f"EDGEORCH_{key.upper()}")},
        ),
    ]
    path = user_config_path(env)
    if path.exists():
        sources.append((str(path), _read_user_config(path)))
    if not all(any(key in values for _, values in sources) for key in ("url", "ca")):
        sources.append((str(node_config), _from_node(node_config, env)))
    found: dict[str, str] = {}
    origins: dict[str, str] = {}
    for source, values in sources:
        for key, value in values.items():
            if key not in found:
                found[key], origins[key] = value, source
    return Endpoint(
        url=complete_url(found.get("url", f"http://127.0.0.1:{DEFAULT_PORT}")),
        token=found.get("token", ""),
        ca=str(Path(found["ca"]).expanduser()) if "ca" in found else "",
        origins=origins,
    )


def user_config_path(env: Mapping[str, str] = os.environ) -> Path:
    """Where a user's own settings are (XDG base directories)."""
    base = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME") or Path.home(), ".config"))
    return base / "edgeorch" / "config.toml"


def complete_url(text: str) -> str:
    """``HOST``, ``HOST:PORT`` or a URL, as a URL without a path.

    Raises:
        InvalidRequestError: it is none, or would send a token in clear text to another machine.
    """
    scheme, separator, rest = text.strip().rpartition("://")
    rest = rest.rstrip("/")
    if rest.count(":") > 1 and "[" not in rest:
        rest = f"[{rest}]"
    try:
        parts = urlsplit(f"{scheme or 'https'}://{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequestError(f"{text!r} is not a node's address: {error}") from None
    if not host or parts.path or parts.query or parts.username or scheme not in {"", "http", "https"}:
        raise InvalidRequestError(
            f"{text!r} is not a node's address", hint="write HOST, HOST:PORT or https://HOST:PORT"
        )
    if not separator:
        scheme = "http" if is_loopback(host) else "https"
    if scheme == "http" and not is_loopback(host):
        raise InvalidRequestError(
            f"{text!r}: plain http works on the node itself only", hint="write https://"
        )
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{DEFAULT_PORT if port is None else port}"


def is_loopback(host: str) -> bool:
    """Whether this names the machine that we are on."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_user_config(path: Path) -> dict[str, str]:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="check its permissions") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for key, value in tree.items():
        if key not in KEYS or not isinstance(value, str):
            raise ConfigError(
                f"{path}: {key!r} is not known here", hint=f"known, all text: {', '.join(KEYS)}"
            )
    if tree.get("ca"):
        tree["ca"] = str(path.parent / Path(tree["ca"]).expanduser())
    return tree


def _from_node(path: Path, env: Mapping[str, str]) -> dict[str, str]:
    """The node of this machine, where there is one and its configuration may be read."""
    if not os.access(path, os.R_OK):
        return {}
    loaded = config.load(path, env)
    found = {"url": node_url(loaded.config)}
    ca = loaded.resolve(loaded.config.pki.dir) / "ca.pem"
    if os.access(ca, os.R_OK):
        found["ca"] = str(ca)
    return found


def node_url(settings: config.Config) -> str:
    """How to reach a node from its own machine: plain on loopback, else TLS on what it listens to."""
    listen = settings.node.listen
    for address in listen:
        if is_loopback(address):
            return complete_url(f"http://{_bracketed(address)}:{settings.api.port}")
    if not listen or "0.0.0.0" in listen:  # noqa: S104  compared, not bound
        return f"http://127.0.0.1:{settings.api.port}"
    if "::" in listen:
        return f"http://[::1]:{settings.api.port}"
    return f"https://{_bracketed(listen[0])}:{settings.api.port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
