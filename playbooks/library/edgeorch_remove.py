#!/usr/bin/python
"""Take edgeorch off a host."""

DOCUMENTATION = r"""
module: edgeorch_remove
short_description: Stop and remove everything of edgeorch on a host
description:
  - Ends the node, the runner with its services, and the containers that this node started.
  - Removes units, drop-ins, programs and links; with O(purge) also users, settings, keys and data.
  - Works on a host that was deployed half or not at all.
options:
  purge:
    description: Whether users, settings, keys and data go too.
    type: bool
    default: false
  docker_host:
    description: The Docker Engine's socket.
    type: str
    default: unix:///var/run/docker.sock
author: edgeorch
"""

EXAMPLES = r"""
- name: Remove edgeorch
  edgeorch_remove:
    purge: true
"""

RETURN = r"""
removed:
  description: What was ended or removed.
  returned: always
  type: list
  elements: str
kept:
  description: What stays on the host, because O(purge) is off.
  returned: always
  type: list
  elements: str
"""

import contextlib
import glob
import grp
import http.client
import json
import os
import pwd
import shutil
import signal
import socket
import time
import urllib.parse

from ansible.module_utils.basic import AnsibleModule

UNITS = ("edgeorch.service", "edgeorch-runner.service")
SYSTEMD = "/etc/systemd/system"
PROGRAM, COMMAND = "/opt/edgeorch", "/usr/local/bin/edgeorch"
SYSUSERS = "/etc/sysusers.d"
USERS = ("edgeorch", "edgeorch-task")
DATA = ("/etc/edgeorch", "/var/lib/edgeorch")
MADE = (
    *(SYSTEMD + "/" + unit for unit in UNITS),
    *(SYSTEMD + "/" + unit + ".d" for unit in UNITS),
    *(SYSTEMD + "/multi-user.target.wants/" + unit for unit in UNITS),
    SYSUSERS + "/edgeorch.conf",
    "/etc/tmpfiles.d/edgeorch.conf",
    PROGRAM,
    "/run/edgeorch",
)
NODE_LABEL = "edgeorch.node"
ENGINE_S = 60
ENDED_S = 10
"""How long processes may take to be gone after SIGKILL."""


class Host:
    """What is removed, and from where."""

    def __init__(self, module):
        self.module = module
        self.removed = []

    def run(self, *argv):
        """Run a command; the module fails with what it says where it does not work."""
        code, _, said = self.module.run_command(list(argv))
        if code:
            self.module.fail_json(msg="%s failed: %s" % (" ".join(argv), said.strip()), removed=self.removed)

    def stop_units(self):
        """The node first, so that it says goodbye; its services end with the runner."""
        shown = ["systemctl", "show", "--property", "ActiveState", "--value"]
        for unit in UNITS:
            state = self.module.run_command([*shown, unit])[1].strip()
            if state not in ("", "inactive"):
                self.removed.append("running " + unit)
                if not self.module.check_mode:
                    self.run("systemctl", "stop", unit)
                    self.module.run_command(["systemctl", "reset-failed", unit])

    def remove(self, *paths):
        """Files, links and folders."""
        for path in paths:
            if not os.path.lexists(path):
                continue
            self.removed.append(path)
            if self.module.check_mode:
                continue
            try:
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
            except OSError as error:
                message = "%s cannot be removed: %s" % (error.filename or path, error.strerror)
                self.module.fail_json(msg=message, removed=self.removed)

    def remove_containers(self, docker_host):
        """Containers that this node started; those of others on the same Engine stay."""
        node_id = read(DATA[0] + "/node_id").strip()
        path = docker_host.partition("://")[2]
        if not node_id or not docker_host.startswith("unix://") or not os.path.exists(path):
            return
        wanted = urllib.parse.quote(json.dumps({"label": ["%s=%s" % (NODE_LABEL, node_id)]}))
        try:
            found = engine(path, "GET", "/containers/json?all=true&filters=" + wanted) or []
            for container in found:
                self.removed.append("container " + container["Names"][0].lstrip("/"))
                if not self.module.check_mode:
                    engine(path, "DELETE", "/containers/%s?force=true&v=true" % container["Id"])
        except OSError as error:
            self.module.warn(
                "the Docker Engine does not answer, so containers of edgeorch may be left: %s" % error
            )

    def end_processes(self):
        """What is left of the users' processes, such as a runner that was started by hand."""
        uids = {pwd.getpwnam(name).pw_uid for name in USERS if has_user(name)}
        left = processes(uids)
        self.removed += ["process %d" % pid for pid in left]
        if self.module.check_mode:
            return
        end = time.monotonic() + ENDED_S
        while left and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            left = processes(uids)

    def remove_users(self):
        """Both users, and the groups that some systems leave behind."""
        for name in reversed(USERS):
            if has_user(name):
                self.removed.append("user " + name)
                if not self.module.check_mode:
                    self.run("userdel", name)
        for name in reversed(USERS):
            if has_group(name) and (not self.module.check_mode or not has_user(name)):
                self.removed.append("group " + name)
                if not self.module.check_mode:
                    self.run("groupdel", name)


class EngineConnection(http.client.HTTPConnection):
    """HTTP over the Engine's socket."""

    def connect(self):
        """Open it."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


def engine(path, method, target):
    """What the Engine answers; None for nothing or an error, such as a container that is gone."""
    connection = EngineConnection(path, timeout=ENGINE_S)
    try:
        connection.request(method, target, headers={"Host": "docker"})
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise OSError(str(error) or type(error).__name__) from None
    finally:
        connection.close()
    return json.loads(body) if answer.status == 200 and body else None


def read(path):
    """The text of a file; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def processes(uids):
    """Ids of the live processes of these users; a container's user of the same number is another one."""
    found, here = [], os.readlink("/proc/self/ns/pid")
    for path in glob.glob("/proc/[0-9]*"):
        try:
            ours = os.stat(path).st_uid in uids and os.readlink(path + "/ns/pid") == here
        except OSError:
            continue
        if ours and read(path + "/stat").rpartition(") ")[2][:1] not in ("Z", "X", ""):
            found.append(int(os.path.basename(path)))
    return found


def has_user(name):
    """Whether this host itself has the user."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def has_group(name):
    """Whether this host itself has the group."""
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def main():
    """The module."""
    module = AnsibleModule(
        argument_spec={
            "purge": {"type": "bool", "default": False},
            "docker_host": {"type": "str", "default": "unix:///var/run/docker.sock"},
        },
        supports_check_mode=True,
    )
    purge = module.params["purge"]
    host = Host(module)
    host.stop_units()
    host.remove_containers(module.params["docker_host"])
    host.end_processes()
    units = len(host.removed)
    # A link of this name that somebody else made is not ours.
    ours = os.path.islink(COMMAND) and os.readlink(COMMAND).startswith(PROGRAM + "/")
    host.remove(*MADE, *([COMMAND] if ours else []))
    if len(host.removed) > units and not module.check_mode:
        host.run("systemctl", "daemon-reload")
        # Not every system has this folder before somebody puts a file into it.
        with contextlib.suppress(OSError):
            os.rmdir(SYSUSERS)
    if purge:
        host.remove(*DATA)
        host.remove_users()
    kept = [] if purge else [path for path in DATA if os.path.lexists(path)]
    diff = {"before": "".join(line + "\n" for line in host.removed), "after": ""}
    module.exit_json(changed=bool(host.removed), removed=host.removed, kept=kept, diff=diff)


if __name__ == "__main__":
    main()
