#!/usr/bin/python
"""Set a node aside while its version is switched, and take it back in."""

DOCUMENTATION = r"""
module: edgeorch_upgrade
short_description: Before and after a host is switched between two staged versions of edgeorch
description:
  - C(begin) has the node take nothing new, and keeps its settings and units.
  - C(back) has the node take nothing new, and restores settings and units as they were before C(begin).
  - C(finish) has the node take what it took before.
  - C(look) and C(look_back) only say whether there is something to do.
  - What an upgrade goes from and to is written down before anything changes, so that a run which was cut off
    is carried on by the next one.
options:
  step:
    description: What to do.
    type: str
    choices: [look, look_back, begin, back, finish]
    required: true
  to:
    description: >-
      The folder of the new version below O(root). With C(look_back) and C(back), only the upgrade to this one
      is taken back; any where this is empty.
    type: str
    default: ""
  at:
    description: When the upgrade is, in seconds of the controller's clock.
    type: int
    default: 0
  token:
    description: An API token of role admin.
    type: str
    required: true
  drain_s:
    description: Drain the node and wait this long until nothing runs there; 0 only keeps new work away.
    type: int
    default: 0
  keep:
    description: Files that C(back) restores, besides the settings.
    type: list
    elements: path
    default: []
  unfinished:
    description: Whether C(back) only takes back an upgrade that has not been finished.
    type: bool
    default: false
  root:
    description: Where the versions are.
    type: path
    default: /opt/edgeorch
  folder:
    description: Settings and keys.
    type: path
    default: /etc/edgeorch
  port:
    description: The REST port.
    type: int
    default: 56001
author: edgeorch
"""

EXAMPLES = r"""
- name: Set the node aside
  edgeorch_upgrade:
    step: begin
    to: 0.2.0-py311
    token: "{{ lookup('file', '.edgeorch/home/admin.token') }}"
"""

RETURN = r"""
version:
  description: The folder of the version that is to be in force after this step.
  returned: always
  type: str
needed:
  description: Whether there is something to do.
  returned: with C(look), C(look_back) and C(back)
  type: bool
previous:
  description: The folder of the version to go back to.
  returned: always
  type: str
upgrade:
  description: The last upgrade of this host, C(to) which folder and C(at) what time.
  returned: always
  type: dict
unfinished:
  description: Whether an upgrade, or the way back, was begun and not finished.
  returned: always
  type: bool
idle:
  description: Whether nothing runs on the drained node.
  returned: always
  type: bool
said:
  description: What the node says while it drains.
  returned: always
  type: str
"""

import json
import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.edgeorch_local import NODE, LocalNode, wait_idle
from ansible.module_utils.edgeorch_unit import show

ACTIONS = {"alive": "resume", "ready": "resume", "cordoned": "cordon", "draining": "drain"}
"""A node's state to what brings it about."""


class Upgrade:
    """One host between two versions."""

    def __init__(self, module):
        self.module = module
        self.wish = module.params
        self.root = self.wish["root"]
        self.link = os.path.join(self.root, "current")
        self.file = os.path.join(self.root, "upgrade.json")
        self.known = self.read()
        self.idle, self.said = False, ""

    def read(self):
        """What an earlier step has written down."""
        try:
            with open(self.file, encoding="utf-8") as file:
                return json.load(file)
        except (OSError, ValueError):
            return {}

    def write(self, **changes):
        """Write down how far this is; on disk when it returns."""
        self.known = dict(self.known, **changes)
        replace(self.file, json.dumps(self.known), 0o600)

    @property
    def current(self):
        """The folder that the link points to; empty where there is none."""
        try:
            return os.path.basename(os.readlink(self.link))
        except OSError:
            return ""

    @property
    def unfinished(self):
        """Whether an upgrade, or the way back, was begun and cut off."""
        return bool(self.known) and not self.known["finished"]

    def staged(self, name):
        """Whether a version is on this host."""
        return bool(name) and os.path.exists(os.path.join(self.root, name, "bin", "python"))

    def may_go_back(self):
        """Whether the version of this host is the new one of the upgrade that is to be taken back."""
        known = self.known
        wanted = self.wish["to"] in ("", known.get("to"))
        return self.unfinished or (bool(known) and wanted and known["from"] != known["to"] == self.current)

    def node(self):
        """The node of this host, and its state; None where it does not run."""
        if show(self.module, [NODE], "ActiveState")[NODE]["ActiveState"] != "active":
            return None, "ready"
        try:
            node = LocalNode(self.wish["folder"], self.wish["port"], self.wish["token"])
            return node, node.get("/api/v1/nodes/self")["state"]
        except OSError as error:
            self.fail("the node does not answer, so nothing was changed: %s" % error)

    def fail(self, message):
        """End with one sentence."""
        self.module.fail_json(msg=message, version=self.current, previous=self.known.get("from", ""))

    def set_aside(self, node, state):
        """Let the node take nothing new."""
        if node is None:
            # It may be on its way up again and again, and must not load half of one version, half of another.
            code, _, said = self.module.run_command(["systemctl", "stop", NODE])
            if code:
                self.fail("the node cannot be stopped: %s" % said.strip())
            return
        try:
            if state != "draining" and not (state == "cordoned" and not self.wish["drain_s"]):
                node.change("drain" if self.wish["drain_s"] else "cordon")
        except OSError as error:
            self.fail("the node cannot be set aside: %s" % error)
        if self.wish["drain_s"]:
            self.said, self.idle = wait_idle(self.module, self.wish["drain_s"])

    def begin(self):
        """Keep what is, and set aside."""
        to = self.wish["to"]
        if self.module.check_mode:
            return
        if not self.staged(to):
            self.fail("%s is not staged on this host: run upgrade without --limit or --tags" % to)
        node, state = self.node()
        if self.unfinished:
            # What to go back to is what was there before the run that was cut off.
            self.write(to=to, at=self.wish["at"], undone=False)
        elif self.known and self.known["to"] == self.current == to:
            self.write(state=state, finished=False)
        else:
            files = {path: kept(path) for path in self.kept_files()}
            before, self.known = dict(self.known, before=None) if self.known else None, {}
            self.write(
                **{"from": self.current, "to": to, "at": self.wish["at"], "state": state, "files": files},
                before=before,
                finished=False,
                undone=False,
            )
        self.set_aside(node, state)

    def back(self):
        """Set aside, and restore what begin kept."""
        if not self.staged(self.known["from"]):
            self.fail("%s is not on this host any more: run deploy with its wheel" % self.known["from"])
        if self.module.check_mode:
            return
        node, state = self.node()
        self.write(
            state=self.known["state"] if self.unfinished else state,
            finished=False,
            undone=self.wish["unfinished"],
        )
        self.set_aside(node, state)
        for path, file in self.known["files"].items():
            restore(path, file)

    def kept_files(self):
        """Settings, units and the like."""
        return [os.path.join(self.wish["folder"], "edgeorch.toml"), *self.wish["keep"]]

    def finish(self):
        """Let the node take what it took before."""
        if not self.unfinished or self.module.check_mode:
            return
        node, state = self.node()
        wanted = ACTIONS[self.known["state"]]
        if node is None:
            self.fail("edgeorch does not run: `systemctl status edgeorch` on the host says why")
        try:
            if ACTIONS[state] != wanted:
                node.change(wanted)
        except OSError as error:
            self.fail("the node cannot be resumed: %s" % error)
        if self.known["undone"]:
            # An upgrade that failed here is none; the one before it can still be taken back.
            self.known = self.known["before"] or {}
            if not self.known:
                os.unlink(self.file)
                return
        self.write(finished=True, before=None)


def kept(path):
    """Text and mode of a file; None where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return {"text": file.read(), "mode": os.fstat(file.fileno()).st_mode & 0o7777}
    except FileNotFoundError:
        return None


def restore(path, file):
    """Make a file what it was; one that is the same keeps its time, which tells whether a restart is due."""
    if kept(path) == file:
        return
    if file is None:
        os.unlink(path)
        return
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        os.makedirs(folder, 0o755)
    # Settings are of the group that their folder is of.
    replace(path, file["text"], file["mode"], os.stat(folder).st_gid)


def replace(path, text, mode, group=0):
    """Write a file of root's at once."""
    handle, fresh = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".edgeorch")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
        os.fchown(file.fileno(), 0, group)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def main():
    """The module."""
    module = AnsibleModule(
        argument_spec={
            "step": {
                "type": "str",
                "choices": ["look", "look_back", "begin", "back", "finish"],
                "required": True,
            },
            "to": {"type": "str", "default": ""},
            "at": {"type": "int", "default": 0},
            "token": {"type": "str", "required": True, "no_log": True},
            "drain_s": {"type": "int", "default": 0},
            "keep": {"type": "list", "elements": "path", "default": []},
            "unfinished": {"type": "bool", "default": False},
            "root": {"type": "path", "default": "/opt/edgeorch"},
            "folder": {"type": "path", "default": "/etc/edgeorch"},
            "port": {"type": "int", "default": 56001},
        },
        supports_check_mode=True,
    )
    upgrade = Upgrade(module)
    wish = module.params
    before, needed = upgrade.current, None
    if not before:
        upgrade.fail("edgeorch is not installed here: run deploy first")
    changed = upgrade.unfinished
    if wish["step"] == "look":
        needed, changed = upgrade.unfinished or before != wish["to"], False
    elif wish["step"] == "look_back":
        needed, changed = upgrade.may_go_back(), False
    elif wish["step"] == "begin":
        upgrade.begin()
        changed = True
    elif wish["step"] == "back":
        changed = needed = upgrade.unfinished if wish["unfinished"] else upgrade.may_go_back()
        if needed:
            upgrade.back()
    else:
        upgrade.finish()
    previous = upgrade.known.get("from", "")
    after = {"begin": wish["to"], "back": previous}.get(wish["step"], before) if changed else before
    module.exit_json(
        changed=changed,
        version=after,
        needed=needed,
        previous=previous,
        upgrade={"to": upgrade.known.get("to", ""), "at": upgrade.known.get("at", 0)},
        unfinished=upgrade.unfinished,
        idle=upgrade.idle,
        said=upgrade.said,
        diff={"before": before + "\n", "after": after + "\n"},
    )


if __name__ == "__main__":
    main()
