#!/usr/bin/python
"""Pack what a host needs to install edgeorch, on the controller."""

DOCUMENTATION = r"""
module: edgeorch_bundle
short_description: Build edgeorch's wheel and pack it with what a host needs to install it
description:
  - Builds the wheel of a checkout, or takes a ready one.
  - Makes one archive for each distinct pair of Python and platform, with the wheel, pip, the pinned
    requirements, and in offline mode every dependency as a wheel.
  - What is there already is not made again; a wheel is known by its sources, an archive by its content.
options:
  source:
    description: Folder of the checkout to build.
    type: path
    required: true
  wheel:
    description: A ready wheel; empty to build one.
    type: path
    default: ""
  home:
    description: Folder of the controller's state; a new one is kept out of version control.
    type: path
    required: true
  folder:
    description: Folder below C(home) for wheels and archives.
    type: path
    required: true
  locks:
    description: Folder with the pinned requirements, one file for each Python.
    type: path
    required: true
  targets:
    description: >-
      For each host a dict with C(python_tag) and C(platform), as its own Python says them, and whether it is
      C(offline), so that its archive holds every dependency.
    type: list
    elements: dict
    default: []
  controller:
    description: Whether this machine is a target too, and always an offline one.
    type: bool
    default: false
  pip_args:
    description: Further arguments of pip.
    type: list
    elements: str
    default: []
author: edgeorch
"""

EXAMPLES = r"""
- name: Pack edgeorch for two machines
  edgeorch_bundle:
    source: ..
    home: .edgeorch
    folder: .edgeorch/home/dist
    locks: locks
    targets:
      - {python_tag: py311, platform: linux-x86_64, offline: true}
      - {python_tag: py313, platform: linux-aarch64, offline: false}
"""

RETURN = r"""
version:
  description: Of edgeorch, as the wheel's name says it.
  returned: always
  type: str
wheel:
  description: Path of the wheel; empty where check mode has not built it.
  returned: always
  type: str
archives:
  description: Path and digest of the archive by C(TAG-PLATFORM-offline) or C(TAG-PLATFORM-online).
  returned: always
  type: dict
controller:
  description: Python tag, platform and Python of this machine.
  returned: always
  type: dict
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import typing
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.edgeorch_pip import QUIET, SECONDS, complaint

GLIBC = (2, 28)
"""The locks are resolved for this and later ones; each wheel that runs here runs on a newer one too."""
OLDEST_GLIBC = 5
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_WHEEL = re.compile(r"edgeorch-([^-]+)-(?:[^-]+-)?py3-none-any\.whl")
_KEPT = 2
"""Archives and sets of wheels of one pair: of this release and of the one before."""


class FailureError(Exception):
    """A sentence for the user."""


class Wheel(typing.NamedTuple):
    """A wheel of edgeorch; in check mode perhaps one that is still to be built."""

    path: Path
    version: str
    digest: str


class Kind(typing.NamedTuple):
    """A kind of host: ``py311``, ``linux-x86_64``, and whether it needs every dependency."""

    tag: str
    platform: str
    offline: bool = True

    @property
    def python(self):
        """Its Python's version."""
        return f"{self.tag[2]}.{self.tag[3:]}"

    def __str__(self):
        return f"{self.tag}-{self.platform}-{'offline' if self.offline else 'online'}"


class Bundle:
    """The archives of one release.

    Args:
        params: the module's.
        check: only say what would be made.
    """

    def __init__(self, params, *, check):
        self.params = params
        self.check = check
        self.changed = False
        self.folder = Path(params["folder"])
        self.locks = Path(params["locks"])
        self.here = Kind(f"py{sys.version_info[0]}{sys.version_info[1]}", sysconfig.get_platform())

    def make(self):
        """Build and pack what is missing; return what the module does."""
        if not self.check:
            self._make_folder()
        wheel = self._wheel()
        kinds = {Kind(one["python_tag"], one["platform"], one["offline"]) for one in self.params["targets"]}
        kinds |= {self.here} if self.params["controller"] else set()
        archives = {str(kind): self._archive(wheel, kind) for kind in sorted(kinds)}
        return {
            "changed": self.changed,
            "version": wheel.version,
            "wheel": str(wheel.path) if wheel.path.is_file() else "",
            "archives": archives,
            "controller": {
                "python_tag": self.here.tag,
                "platform": self.here.platform,
                "python": sys.executable,
            },
        }

    def _make_folder(self):
        home = Path(self.params["home"])
        if not home.exists():
            # It will hold keys, and often lies beside an inventory that is under version control.
            home.mkdir(parents=True, mode=0o700)
            (home / ".gitignore").write_text("*\n")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _wheel(self):
        if self.params["wheel"]:
            return _read_wheel(Path(self.params["wheel"]))
        source = Path(self.params["source"])
        if not (source / "pyproject.toml").is_file():
            raise FailureError(f"{source} is no checkout of edgeorch: name a ready wheel by edgeorch_wheel")
        files = [source / "pyproject.toml", source / "README.md", source / "LICENSE"]
        files += (path for path in (source / "edgeorch").rglob("*") if "__pycache__" not in path.parts)
        sources = sorted(path for path in files if path.is_file())
        parts = ((str(path.relative_to(source)).encode(), path.read_bytes()) for path in sources)
        digest = _digest(*(part for pair in parts for part in pair))
        built = self.folder / f"built-{digest}"
        if not built.exists():
            self.changed = True
            if self.check:
                text = (source / "edgeorch/__init__.py").read_text()
                return Wheel(built, re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)[1], digest)
            with self._scratch() as scratch:
                self._pip("wheel", ["--no-deps", "--wheel-dir", scratch, str(source)], "any machine")
                os.rename(scratch, built)
            self._forget_older("built-*")
        (path,) = built.glob("*.whl")
        return _read_wheel(path)

    def _archive(self, wheel, kind):
        lock = self.locks / f"{kind.tag}.txt"
        if not lock.is_file():
            known = ", ".join(sorted(path.stem for path in self.locks.glob("py*.txt")))
            raise FailureError(
                f"there is no lock for {kind.tag} (but for {known}): edgeorch_python names another"
            )
        digest = _digest(wheel.digest.encode(), lock.read_bytes())
        path = self.folder / f"edgeorch-{wheel.version}-{kind}-{digest}.tar"
        if not path.exists():
            self.changed = True
            if not self.check:
                self._pack(path, wheel, lock, kind)
                self._forget_older(f"edgeorch-*-{kind}-*.tar")
        return {"path": str(path), "digest": digest}

    def _pack(self, path, wheel, lock, kind):
        members = [wheel.path, *self._collected(self.locks / "pip.txt", None).glob("*.whl")]
        if kind.offline:
            members += self._collected(lock, kind).glob("*.whl")
        whole = hashlib.sha256(wheel.path.read_bytes()).hexdigest()
        with self._scratch() as scratch:
            requirements = Path(scratch, "requirements.txt")
            requirements.write_text(f"{lock.read_text()}edgeorch=={wheel.version} --hash=sha256:{whole}\n")
            packed = Path(scratch, path.name)
            with tarfile.open(packed, "w") as archive:
                for member in [requirements, *sorted(members)]:
                    archive.add(member, member.name)
            packed.rename(path)

    def _collected(self, lock, kind):
        """The folder with every wheel of a lock, for a kind of host; None: of wheels that run on any."""
        name = f"{kind.tag}-{kind.platform}" if kind else lock.stem
        folder = self.folder / f"wheels-{name}-{_digest(lock.read_bytes())}"
        if folder.exists():
            return folder
        chosen = ["--only-binary=:all:", "--no-deps", "--require-hashes", f"--requirement={lock}"]
        if kind and kind != self.here:
            chosen += [f"--python-version={kind.python}", "--implementation=cp"]
        if kind and kind.platform.startswith("linux-"):
            chosen += [f"--platform={one}" for one in platform_tags(kind.platform)]
        machine = f"Python {kind.python} on {kind.platform}" if kind else "any machine"
        with self._scratch() as scratch:
            self._pip("download", [*chosen, f"--dest={scratch}"], machine)
            os.rename(scratch, folder)
        self._forget_older(f"wheels-{name}-*")
        return folder

    def _pip(self, command, arguments, machine):
        argv = [sys.executable, "-m", "pip", command, *QUIET, *SECONDS, *self.params["pip_args"], *arguments]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise FailureError(complaint(done.stderr, self.folder, machine))

    def _scratch(self):
        """A folder that is renamed when it is whole; what is left of it goes."""
        return tempfile.TemporaryDirectory(prefix=".making-", dir=self.folder, ignore_cleanup_errors=True)

    def _forget_older(self, pattern):
        found = sorted(self.folder.glob(pattern), key=lambda path: path.stat().st_mtime)
        for path in found[:-_KEPT]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _read_wheel(path):
    name = _WHEEL.fullmatch(path.name)
    if not path.is_file():
        raise FailureError(f"edgeorch_wheel: {path} does not exist on the controller")
    if not name:
        raise FailureError(f"edgeorch_wheel: {path.name} is not the name of a wheel of edgeorch")
    return Wheel(path, name[1], _digest(path.read_bytes()))


def platform_tags(platform):
    """What pip calls the machines whose wheels run on a Linux platform, the newest first (PEP 600)."""
    machine = platform.partition("-")[2].replace("-", "_").replace(".", "_")
    tags = []
    for minor in range(GLIBC[1], OLDEST_GLIBC - 1, -1):
        tags.append(f"manylinux_{GLIBC[0]}_{minor}_{machine}")
        if minor in _LEGACY:
            tags.append(f"{_LEGACY[minor]}_{machine}")
    return [*tags, f"linux_{machine}"]


def _digest(*parts):
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()[:16]


def main():
    """Answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "wheel": {"type": "path", "default": ""},
            "home": {"type": "path", "required": True},
            "folder": {"type": "path", "required": True},
            "locks": {"type": "path", "required": True},
            "targets": {"type": "list", "elements": "dict", "default": []},
            "controller": {"type": "bool", "default": False},
            "pip_args": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**Bundle(module.params, check=module.check_mode).make())
    except FailureError as failure:
        module.fail_json(msg=str(failure))
    except OSError as error:
        where = error.filename or module.params["folder"]
        module.fail_json(msg=f"{where}: {error.strerror}: make it writable, or free some space")


if __name__ == "__main__":
    main()
