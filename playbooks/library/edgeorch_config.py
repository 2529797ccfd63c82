#!/usr/bin/python
"""Put the settings, units, users and folders of edgeorch in place."""

DOCUMENTATION = r"""
module: edgeorch_config
short_description: Users, folders, units and settings of edgeorch on a host
description:
  - One call instead of a dozen tasks, because each round trip counts on slow machines.
  - The settings are read by the installed edgeorch itself before they replace the old ones.
  - A change that the running node cannot take over without a restart renews C(restart), whose time says so.
options:
  settings:
    description: Text of C(edgeorch.toml).
    type: str
    required: true
  files:
    description: Path to text of units, drop-ins and the lists of users and folders; empty text removes it.
    type: dict
    required: true
  devices:
    description: Devices that native services may use.
    type: list
    elements: str
    default: []
  groups:
    description: Group that must exist, to what makes it necessary.
    type: dict
    default: {}
  folder:
    description: Where the settings are.
    type: path
    default: /etc/edgeorch
  python:
    description: The Python of the installed edgeorch.
    type: path
    default: /opt/edgeorch/current/bin/python
  restart:
    description: The file whose time is that of the last change that needs a restart.
    type: path
    default: /opt/edgeorch/restart
author: edgeorch
"""

EXAMPLES = r"""
- name: Put settings and units in place
  edgeorch_config:
    settings: "[node]\nname = 'kitchen'\n"
    files:
      /etc/systemd/system/edgeorch.service: "{{ lookup('file', 'edgeorch.service') }}"
"""

RETURN = r"""
written:
  description: Files that were written or removed.
  returned: always
  type: list
  elements: str
"""

import grp
import json
import os
import pwd
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.edgeorch_cli import sentence

DEVICES = "/etc/systemd/system/edgeorch-runner.service.d/devices.conf"


class Host:
    """The files of one host, and what changed."""

    def __init__(self, module):
        self.module = module
        self.written = []
        self.diffs = []

    def read(self, path):
        """The text of a file; empty where there is none."""
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return ""

    def write(self, path, text, mode, group="root"):
        """Write or remove a file where it differs, and set who may read it."""
        old = self.read(path)
        there = os.path.lexists(path)
        if not text and not there:
            return
        if old != text or not there:
            self.written.append(path)
            self.diffs.append({"before_header": path, "after_header": path, "before": old, "after": text})
            if self.module.check_mode:
                return
            if not text:
                os.unlink(path)
                return
            if not os.path.isdir(os.path.dirname(path)):
                os.makedirs(os.path.dirname(path), 0o755)
            fresh = self.fresh(text)
            os.chmod(fresh, mode)
            self.module.atomic_move(fresh, path)
        self.attributes(path, mode, group)

    def fresh(self, text):
        """A new file of this text."""
        handle, path = tempfile.mkstemp(dir=self.module.tmpdir, suffix=".toml")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def attributes(self, path, mode, group):
        """Owner root, the group and the mode, where they differ."""
        now = os.lstat(path)
        gid = grp.getgrnam(group).gr_gid
        if (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) == (0, gid, mode):
            return
        if path not in self.written:
            self.written.append(path)
        if not self.module.check_mode:
            os.chown(path, 0, gid)
            os.chmod(path, mode)

    def run(self, *argv):
        """Run a command that must work."""
        code, _, said = self.module.run_command(list(argv))
        if code:
            self.module.fail_json(msg="%s failed: %s" % (" ".join(argv), said.strip()))


def below(files, folder):
    """Path and text of the files in a folder of this name."""
    return [(path, text) for path, text in files.items() if os.path.basename(os.path.dirname(path)) == folder]


def make_users(host, files):
    """Users first: all that follows belongs to them."""
    for path, text in below(files, "sysusers.d"):
        host.write(path, text, 0o644)
        users = [line.split()[1] for line in text.splitlines() if line.startswith("u")]
        if path in host.written or not all(map(known_user, users)):
            host.written.append(path)
            if not host.module.check_mode:
                host.run("systemd-sysusers", path)
    return not host.module.check_mode or known_user("edgeorch")


def known_user(name):
    """Whether the host has this user."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def make_folders(host, files):
    """Folders with their owners, as systemd makes them at each start of the machine too."""
    for path, text in below(files, "tmpfiles.d"):
        host.write(path, text, 0o644)
        made = [line.split()[1] for line in text.splitlines() if line.startswith("d")]
        if path in host.written or not all(map(os.path.isdir, made)):
            host.written.append(path)
            if not host.module.check_mode:
                host.run("systemd-tmpfiles", "--create", path)


def make_settings_folder(host, folder):
    """Made before the first start: systemd would hand it to the service's own user."""
    if not os.path.isdir(folder):
        host.written.append(folder)
        if host.module.check_mode:
            return
        os.makedirs(folder, 0o750)
    host.attributes(folder, 0o750, "edgeorch")


def devices_drop_in(module, devices):
    """The runner's drop-in: the devices, and the groups through which its user reaches them."""
    groups = []
    for path in devices:
        try:
            found = os.stat(path)
        except OSError:
            module.fail_json(msg="there is no %s: connect it, or take it out of edgeorch_devices" % path)
        if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
            module.fail_json(msg="%s is not a device: take it out of edgeorch_devices" % path)
        everybody = found.st_mode & 0o006 == 0o006
        if not everybody and (found.st_gid == 0 or found.st_mode & 0o060 != 0o060):
            module.fail_json(
                msg="only root may use %s: give it a group of its own by a udev rule, "
                "or take it out of edgeorch_devices" % path
            )
        if not everybody:
            groups.append(grp.getgrgid(found.st_gid).gr_name)
    if not devices:
        return ""
    lines = ["# Devices that native services may use (edgeorch_devices).", "[Service]"]
    lines += ["DeviceAllow=%s rw" % path for path in devices]
    lines += ["SupplementaryGroups=%s" % " ".join(sorted(set(groups)))] if groups else []
    return "\n".join(lines) + "\n"


def check_groups(module, groups):
    """Groups that the units name: systemd starts no unit whose group is missing."""
    for name, why in groups.items():
        try:
            grp.getgrnam(name)
        except KeyError:
            module.fail_json(
                msg="%s, but this host has no group %s: install Docker, or leave it off" % (why, name)
            )


def rows(module, path):
    """Each setting with its value, by the node's own reading, or None with what is wrong."""
    argv = [module.params["python"], "-m", "edgeorch", "node", "--config", path, "--print-config", "--json"]
    code, out, said = module.run_command(argv)
    return (None, sentence(said)) if code else (json.loads(out), "")


def write_settings(host, path, text, restart):
    """Check the new settings, then replace the old ones."""
    module = host.module
    if host.read(path) != text and not module.check_mode:
        fresh = host.fresh(text)
        new, wrong = rows(module, fresh)
        if new is None:
            module.fail_json(msg=wrong.replace(fresh, "edgeorch_settings"))
        old, _ = rows(module, path) if os.path.exists(path) else (None, "")
        before = {row["key"]: row["value"] for row in old or []}
        if any(before.get(row["key"]) != row["value"] and not row.get("reload") for row in new):
            with open(restart, "w"):
                pass
    host.write(path, text, 0o640, "edgeorch")


def main():
    """The module."""
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "str", "required": True},
            "files": {"type": "dict", "required": True},
            "devices": {"type": "list", "elements": "str", "default": []},
            "groups": {"type": "dict", "default": {}},
            "folder": {"type": "path", "default": "/etc/edgeorch"},
            "python": {"type": "path", "default": "/opt/edgeorch/current/bin/python"},
            "restart": {"type": "path", "default": "/opt/edgeorch/restart"},
        },
        supports_check_mode=True,
    )
    wish = module.params
    check_groups(module, wish["groups"])
    files = dict(wish["files"])
    files[DEVICES] = devices_drop_in(module, wish["devices"])
    host = Host(module)
    have_users = make_users(host, files)
    if have_users:
        make_folders(host, files)
        make_settings_folder(host, wish["folder"])
        write_settings(host, os.path.join(wish["folder"], "edgeorch.toml"), wish["settings"], wish["restart"])
    else:
        # A look at a host that has no users yet: everything will be new.
        host.written += [wish["folder"], os.path.join(wish["folder"], "edgeorch.toml")]
        host.diffs.append({"after_header": "edgeorch.toml", "before": "", "after": wish["settings"]})
    for path, text in files.items():
        if "/system/" in path:
            host.write(path, text, 0o644)
    written = sorted(set(host.written))
    module.exit_json(changed=bool(written), written=written, diff=host.diffs)


if __name__ == "__main__":
    main()
