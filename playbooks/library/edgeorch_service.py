#!/usr/bin/python
"""Bring the running node and runner in line with what is on the disk."""

DOCUMENTATION = r"""
module: edgeorch_service
short_description: Start, reload or restart the node of a host, whichever it needs
description:
  - Compares when the node was started and last reloaded with the times of its program, units, settings and
    keys. So a run that was cut off between a change and the restart is made good by the next one.
  - The runner is started, but restarted only on a drained node where nothing runs, because its services end
    with it.
  - When the node does not start, its own sentence is the message.
options:
  folder:
    description: Settings and keys.
    type: path
    default: /etc/edgeorch
  program:
    description: The link to the installed version.
    type: path
    default: /opt/edgeorch/current
  restart:
    description: The file whose time is that of the last change of settings that needs a restart.
    type: path
    default: /opt/edgeorch/restart
author: edgeorch
"""

EXAMPLES = r"""
- name: Start edgeorch
  edgeorch_service:
"""

RETURN = r"""
done:
  description: What was done, in order, such as C(restart edgeorch).
  returned: always
  type: list
  elements: str
runner_waits:
  description: Whether the runner still has its old program, unit or devices because services may run.
  returned: always
  type: bool
"""

import glob
import os
import re
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.edgeorch_unit import last_words, show

UNITS = "/etc/systemd/system"
NODE, RUNNER = "edgeorch.service", "edgeorch-runner.service"
SHOWN = (
    "LoadState,ActiveState,UnitFileState,NeedDaemonReload,ExecMainStartTimestampMonotonic,"
    "StateChangeTimestampMonotonic,StatusText,DropInPaths"
)
IDLE = re.compile(r"(^|; )draining: nothing runs\b")


class Services:
    """Both units of one host."""

    def __init__(self, module):
        self.module = module
        self.done = []
        self.units = show(module, [NODE, RUNNER], SHOWN)

    def active(self, name):
        """Whether the unit runs."""
        return self.units[name]["ActiveState"] in ("active", "reloading")

    def outdated(self, name):
        """Whether systemd knows another unit than the disk has; of a first drop-in it does not say so."""
        unit = self.units[name]
        folder = os.path.join(UNITS, name + ".d", "")
        known = {path for path in unit["DropInPaths"].split() if path.startswith(folder)}
        there = set(glob.glob(folder + "*.conf"))
        return unit["LoadState"] != "loaded" or unit["NeedDaemonReload"] == "yes" or known != there

    def since(self, name, what):
        """When something happened to a unit, in seconds of the wall clock as it is set now."""
        ago = time.clock_gettime(time.CLOCK_MONOTONIC) - int(self.units[name][what] or 0) / 1e6
        return time.time() - ago

    def older(self, name, *paths):
        """Whether the program of a running unit was started before one of these, or its unit, changed."""
        started = self.since(name, "ExecMainStartTimestampMonotonic")
        return self.outdated(name) or changed_at(*paths, *unit_files(name)) > started

    def act(self, *words):
        """``systemctl`` with these words, unless this is only a look."""
        self.done.append(" ".join(word.replace(".service", "") for word in words))
        if self.module.check_mode:
            return
        code, _, said = self.module.run_command(["systemctl", *words])
        if code:
            if words[0] in ("start", "restart"):
                short = words[-1].replace(".service", "")
                said = "%s does not start: %s" % (short, last_words(self.module, words[-1]))
                said += " (more: `journalctl -u %s` on the host)" % short
            self.module.fail_json(msg=said.strip(), done=self.done)


def changed_at(*paths):
    """The time of the newest of these files; what a link points to does not count, the link does."""
    return max((os.lstat(path).st_mtime for path in paths if os.path.lexists(path)), default=0)


def unit_files(name):
    """A unit and its drop-ins; the folder too, for a drop-in that was removed."""
    folder = os.path.join(UNITS, name + ".d")
    return [os.path.join(UNITS, name), folder, *glob.glob(os.path.join(folder, "*.conf"))]


def main():
    """The module."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "default": "/etc/edgeorch"},
            "program": {"type": "path", "default": "/opt/edgeorch/current"},
            "restart": {"type": "path", "default": "/opt/edgeorch/restart"},
        },
        supports_check_mode=True,
    )
    wish = module.params
    services = Services(module)
    units = services.units
    old_node = services.active(NODE) and services.older(NODE, wish["program"], wish["restart"])
    old_runner = services.active(RUNNER) and services.older(RUNNER, wish["program"])
    idle = bool(IDLE.search(units[NODE]["StatusText"]))
    if any(services.outdated(name) for name in units):
        services.act("daemon-reload")
    disabled = [name for name in (RUNNER, NODE) if units[name]["UnitFileState"] != "enabled"]
    if disabled:
        services.act("enable", "--quiet", *disabled)

    if not services.active(RUNNER):
        services.act("start", RUNNER)
    elif old_runner and idle:
        services.act("restart", RUNNER)

    settings = os.path.join(wish["folder"], "edgeorch.toml")
    keys = [os.path.join(wish["folder"], "tokens.toml"), *glob.glob(os.path.join(wish["folder"], "pki", "*"))]
    if not services.active(NODE):
        services.act("start", NODE)
    elif old_node:
        services.act("restart", NODE)
    elif changed_at(settings, *keys) > services.since(NODE, "StateChangeTimestampMonotonic"):
        services.act("reload", NODE)
    runner_waits = old_runner and not idle
    module.exit_json(changed=bool(services.done), done=services.done, runner_waits=runner_waits)


if __name__ == "__main__":
    main()
