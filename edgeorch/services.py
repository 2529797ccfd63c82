"""Native services that a node lists by name, from two kinds of files.

``services.d/NAME.toml``, one service a file::

    name = "resize"                  # of the task; the file's name where left out
    argv = ["/usr/bin/resize", "-q"] # the program's absolute path and its first arguments
    allow_args = true                # may the caller add arguments? default: false
    allow_env = ["QUALITY"]          # variables that the caller may set; default: none
    requesters = ["laptop"]          # tokens that may ask for it; default: all that may submit

and the original system's ``apps/*/*.conf``: the task's name must be ``ServiceName``, the program
``ExecutableFileName``, and who asks in ``AllowedRequester``. There the original compared base names only, so
that any file of that name passed; here the program must be named without a folder, lie in a system folder, or
lie beside the ``.conf``. It took a request's own word for who asks wherever it could not find the process;
here a requester is the name of a token, and the request's word counts only where ``policy.requester`` says
so. As there, an ``AllowedRequester`` that is empty or missing lets nobody ask.
"""

import configparser
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec

from edgeorch.files import small_text
from edgeorch.model import Kept, Written

SYSTEM_FOLDERS = frozenset(
    {"/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"},
)
_LARGEST = 65_536
NEVER = frozenset(
    (
        *(
            "sudo",
            "su",
            "bash",
            "bsh",
            "csh",
            "adb",
            "sh",
            "ssh",
            "scp",
            "cat",
            "chage",
            "chpasswd",
            "dmidecode",
        ),
        *("dmsetup", "fcinfo", "fdisk", "iscsiadm", "lsof", "multipath", "oratab", "prtvtoc", "ps", "pburn"),
        *("pfexec", "dzdo"),
    )
)
"""Programs that the original did not list, whatever a ``.conf`` says."""


class ListedService(Kept, frozen=True, kw_only=True):
    """One service that may run where ``policy.native`` is ``listed``."""

    name: str
    """Of the task."""
    source: str
    """The file that lists it."""
    argv: tuple[str, ...] = ()
    """The program and its first arguments; empty where only ``program`` counts."""
    program: str = ""
    """Base name of the program, from the original's files."""
    allow_args: bool = False
    allow_env: tuple[str, ...] = ()
    requesters: tuple[str, ...] | None = None
    """Who may ask for it; None: everybody who may submit."""

    def refusal(self, argv: Sequence[str], env: Mapping[str, str]) -> str:
        """Why a command is not this service, or an empty text where it is."""
        # A variable such as LD_PRELOAD would turn any listed program into another one.
        extra = next((name for name in env if name not in self.allow_env), None)
        if extra is not None:
            return f"{self.source} does not let the caller set {extra}"
        if self.program:
            return "" if self._is_program(argv[0]) else f"{self.source} lists {self.program}, not {argv[0]}"
        given = tuple(argv)
        if given == self.argv or (self.allow_args and given[: len(self.argv)] == self.argv):
            return ""
        return f"the command is not the one in {self.source}"

    def _is_program(self, path: str) -> bool:
        folder, _, base = path.rpartition("/")
        own = str(PurePosixPath(self.source).parent)
        return base == self.program and (path == base or folder in SYSTEM_FOLDERS or folder == own)


class _File(Written, frozen=True, kw_only=True):
    """What ``services.d/NAME.toml`` may say."""

    argv: Annotated[tuple[Annotated[str, msgspec.Meta(min_length=1)], ...], msgspec.Meta(min_length=1)]
    name: str = ""
    allow_args: bool = False
    allow_env: tuple[str, ...] = ()
    requesters: tuple[str, ...] | None = None


def load_services(folder: Path, apps: Path) -> tuple[tuple[ListedService, ...], tuple[str, ...]]:
    """Read every listed service.

    Args:
        folder: ``policy.services``.
        apps: ``policy.apps``.

    Returns:
        The services, and a sentence for each file that cannot be used, or by nobody; a folder that is not
        there is fine.
    """
    found: list[ListedService] = []
    warnings: list[str] = []
    files = [(path, _from_toml) for path in _matching(folder, "*.toml", warnings)]
    files += [(path, _from_conf) for path in _matching(apps, "*/*.conf", warnings)]
    for path, read in files:
        try:
            found += read(path, small_text(path, _LARGEST))
        except OSError as error:
            warnings.append(f"{path}: {error.strerror}; the service is not listed")
        except (ValueError, configparser.Error, RecursionError) as error:
            reason = " ".join(str(error).split())
            warnings.append(f"{path}: {reason}; the service is not listed")
    nobody = "its list of requesters is empty or missing, so nobody may ask for it"
    warnings += [f"{service.source}: {nobody}" for service in found if service.requesters == ()]
    return tuple(found), tuple(warnings)


def _matching(folder: Path, pattern: str, warnings: list[str]) -> list[Path]:
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    except OSError as error:
        warnings.append(f"{folder}: {error.strerror}; no service of it is listed")
        return []


def _from_toml(path: Path, text: str) -> Iterator[ListedService]:
    read = msgspec.convert(tomllib.loads(text), _File)
    if not read.argv[0].startswith("/"):
        raise ValueError(f"argv[0] is {read.argv[0]!r}, but must be an absolute path")
    yield ListedService(
        name=read.name or path.stem,
        source=str(path),
        argv=read.argv,
        allow_args=read.allow_args,
        allow_env=read.allow_env,
        requesters=read.requesters,
    )


def _from_conf(path: Path, text: str) -> Iterator[ListedService]:
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    parser.read_string(text, source=path.name)
    section = parser["ServiceInfo"] if parser.has_section("ServiceInfo") else {}
    # Containers are not listed services: what they may do is ruled by their options.
    if section.get("ExecType", "native").strip() == "container":
        return
    name, program = section.get("ServiceName", "").strip(), section.get("ExecutableFileName", "").strip()
    if not name or not program:
        raise ValueError("[ServiceInfo] needs ServiceName and ExecutableFileName")
    program = PurePosixPath(program).name
    if program in NEVER:
        raise ValueError(
            f"{program} is not allowed in a .conf; list it in policy.services where it is wanted"
        )
    asking = (one.strip() for one in section.get("AllowedRequester", "").split(","))
    yield ListedService(
        name=name,
        source=str(path),
        program=program,
        allow_args=True,
        requesters=tuple(filter(None, asking)),
    )
