#!/usr/bin/python
"""Install edgeorch from an archive of edgeorch_bundle, and say which installed one is in force."""

DOCUMENTATION = r"""
module: edgeorch_venv
short_description: Make a virtual environment with edgeorch, or put one in force
description:
  - With C(archive), makes the environment C(folder)/C(name) anew unless it bears the archive's digest and
    works. It is made beside and moved into place when it is whole. The machine needs no pip and no ensurepip.
  - With C(current), sets the links to the environment C(name), and removes all but this one, the one before,
    and what is still used.
options:
  folder:
    description: Where the environments are.
    type: path
    required: true
  name:
    description: The environment's name.
    type: str
    required: true
  archive:
    description: Archive on this machine.
    type: path
  digest:
    description: The archive's digest.
    type: str
  python:
    description: The Python to make the environment with.
    type: path
  offline:
    description: Whether the archive has every dependency; else pip asks its index.
    type: bool
    default: true
  pip_args:
    description: Further arguments of pip, where it asks its index.
    type: list
    elements: str
    default: []
  compiled:
    description: Whether all of it is compiled now, for those who may not write there later.
    type: bool
    default: true
  remove_archive:
    description: Whether the archive is removed when it has been installed.
    type: bool
    default: false
  current:
    description: Whether to put the environment in force.
    type: bool
    default: false
  command:
    description: The link that makes C(edgeorch) a command of this machine.
    type: path
author: edgeorch
"""

EXAMPLES = r"""
- name: Install edgeorch
  edgeorch_venv:
    folder: /opt/edgeorch
    name: 0.1.0-py311
    python: /usr/bin/python3.11
    archive: /opt/edgeorch/staged/edgeorch.tar
    digest: 5ee0
"""

RETURN = r"""
previous:
  description: The environment that was in force before.
  returned: with C(current)
  type: str
"""

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.edgeorch_pip import QUIET, SECONDS, complaint

MARKER = ".edgeorch.json"
"""In an environment that is whole; preflight reads it."""
NEVER_LOADED = r"/(pygments/(lexers|styles|formatters)|_?tests)/"
"""A third of all the code that comes with the dependencies."""
PROBE = "import edgeorch, ssl, sqlite3"


class FailureError(Exception):
    """A sentence for the user."""


class Environment:
    """One environment below a folder; ``check`` changes nothing."""

    def __init__(self, params, check):
        self.params = params
        self.check = check
        self.folder = Path(params["folder"])
        self.path = self.folder / params["name"]
        self.new = self.folder / (params["name"] + ".new")

    def whole(self):
        """Whether it bears the digest and its Python can load edgeorch."""
        try:
            marker = json.loads((self.path / MARKER).read_text())
            if marker["digest"] != self.params["digest"]:
                return False
            _run([str(self.path / "bin/python"), "-c", PROBE], self.path)
        except (OSError, ValueError, KeyError, FailureError):
            return False
        return True

    def install(self):
        """Make it unless it is whole; return whether it was made."""
        if self.whole():
            return False
        if self.check:
            return True
        # What an earlier run left when it was cut off.
        shutil.rmtree(str(self.new), ignore_errors=True)
        try:
            self._fill()
            self._move()
        finally:
            shutil.rmtree(str(self.new), ignore_errors=True)
        if self.params["remove_archive"]:
            os.unlink(self.params["archive"])
        return True

    def _fill(self):
        self.new.mkdir(parents=True)
        _run([self.params["python"], "-m", "venv", "--without-pip", str(self.new)], self.new)
        wheels = self.new / "wheels"
        wheels.mkdir()
        with tarfile.open(self.params["archive"]) as archive:
            for member in archive:
                # Our own archive holds plain files in one folder; anything else is not ours.
                if not member.isfile() or "/" in member.name:
                    raise FailureError("{} is not an archive of edgeorch".format(self.params["archive"]))
                with archive.extractfile(member) as source, (wheels / member.name).open("wb") as target:
                    shutil.copyfileobj(source, target)
        python = str(self.new / "bin/python")
        (pip,) = wheels.glob("pip-*.whl")
        install = ["--no-deps", "--require-hashes", "--no-compile", "--root-user-action=ignore"]
        install += [f"--find-links={wheels}", f"--requirement={wheels}/requirements.txt"]
        if self.params["offline"]:
            # Whatever this machine's own settings of pip say.
            install += ["--no-index", "--isolated"]
        else:
            install += ["--prefer-binary", "--no-cache-dir", *SECONDS, *self.params["pip_args"]]
        _run([python, str(pip / "pip"), "install", *QUIET, *install], self.new)
        # A wheel of another release may need what this lock has not.
        _run([python, str(pip / "pip"), "check", *QUIET], self.new)
        if self.params["compiled"]:
            compiled = ["-q", "-j", "0", "-x", NEVER_LOADED, str(self.new / "lib")]
            _run([python, "-m", "compileall", *compiled], self.new)
        shutil.rmtree(str(wheels))
        (self.new / MARKER).write_text(json.dumps({"digest": self.params["digest"]}))

    def _move(self):
        """Put the new one in its place; what names its folder is made to name the place."""
        for path in [self.new / "pyvenv.cfg", *(self.new / "bin").iterdir()]:
            if path.is_symlink() or not path.is_file():
                continue
            text = path.read_bytes()
            moved = text.replace(self.new.name.encode(), self.path.name.encode())
            if moved != text:
                path.write_bytes(moved)
        # A power cut after the move must not leave a whole-looking environment of empty files.
        _run(["sync", "-f", str(self.new)], self.new)
        old = self.folder / (self.params["name"] + ".old")
        shutil.rmtree(str(old), ignore_errors=True)
        if os.path.lexists(str(self.path)):
            self.path.rename(old)
        self.new.rename(self.path)
        shutil.rmtree(str(old), ignore_errors=True)
        if _target(self.folder / "current") == self.path.name:
            # The link's age tells the service that its program is another.
            _link(self.folder / "current", self.path.name)

    def put_in_force(self):
        """Set the links and remove what nothing needs any more; return (changed, the one before)."""
        if not self.check and not (self.path / MARKER).exists():
            raise FailureError(f"{self.path} is not installed: run deploy.yml")
        current, previous = (_target(self.folder / link) for link in ("current", "previous"))
        if current and current != self.path.name:
            previous = current
        links = {self.folder / "current": self.path.name, self.folder / "previous": previous}
        if self.params["command"]:
            links[Path(self.params["command"])] = str(self.folder / "current/bin/edgeorch")
        wrong = {link: target for link, target in links.items() if target and _target(link) != target}
        leftover = self._leftover({self.path.name, previous})
        if not self.check:
            for link, target in wrong.items():
                _link(link, target)
            for one in leftover:
                shutil.rmtree(str(one))
        return bool(wrong or leftover), previous

    def _leftover(self, keep):
        """Environments that are not in ``keep``, nor to go back to, nor what a process still uses."""
        if not self.folder.is_dir():
            return []
        try:
            upgrade = json.loads((self.folder / "upgrade.json").read_text())
        except (OSError, ValueError):
            upgrade = {}
        # When the present upgrade fails, the one before it can still be taken back.
        keep |= {upgrade.get("from"), upgrade.get("to"), (upgrade.get("before") or {}).get("from")}
        found = [
            one for one in self.folder.iterdir() if not one.is_symlink() and (one / "pyvenv.cfg").exists()
        ]
        found = [one for one in found if one.name not in keep]
        used = _mapped() if found else ""
        return [one for one in found if f"{one}/" not in used]


def _mapped():
    """The files that the processes of this machine have mapped, as text."""
    maps = []
    for path in Path("/proc").glob("[0-9]*/maps"):
        try:
            maps.append(path.read_text(errors="replace"))
        except OSError:  # it has ended
            continue
    return "".join(maps)


def _target(link):
    try:
        return os.readlink(str(link))
    except OSError:
        return ""


def _link(link, target):
    """Point a link at a target in one step: whoever follows it finds the old or the new."""
    new = link.with_name(f".{link.name}.new")
    if os.path.lexists(str(new)):
        new.unlink()
    new.symlink_to(target)
    new.replace(link)


def _run(argv, folder):
    """Run a command that fills a folder; what it says when it fails becomes a sentence."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise FailureError(f"{argv[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        raise FailureError(complaint(done.stderr + done.stdout, folder, "this machine"))


def main():
    """Answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "archive": {"type": "path"},
            "digest": {"type": "str", "no_log": False},
            "python": {"type": "path"},
            "offline": {"type": "bool", "default": True},
            "pip_args": {"type": "list", "elements": "str", "default": []},
            "compiled": {"type": "bool", "default": True},
            "remove_archive": {"type": "bool", "default": False},
            "current": {"type": "bool", "default": False},
            "command": {"type": "path"},
        },
        required_together=[("archive", "digest", "python")],
        required_one_of=[("archive", "current")],
        supports_check_mode=True,
    )
    # The service's user reads it, whatever root's mask is there.
    os.umask(0o022)
    environment = Environment(module.params, module.check_mode)
    result = {"changed": False}
    try:
        if module.params["archive"]:
            result["changed"] = environment.install()
        if module.params["current"]:
            changed, result["previous"] = environment.put_in_force()
            result["changed"] = result["changed"] or changed
        module.exit_json(**result)
    except FailureError as failure:
        module.fail_json(msg=str(failure))
    except tarfile.TarError as error:
        module.fail_json(
            msg="{} cannot be unpacked ({}): run the play again".format(module.params["archive"], error)
        )
    except OSError as error:
        where = error.filename or module.params["folder"]
        module.fail_json(msg=f"{where}: {error.strerror}: make it writable, or free some space")


if __name__ == "__main__":
    main()
