#!/usr/bin/python
"""Look whether a host can run edgeorch; change nothing there."""

DOCUMENTATION = r"""
module: edgeorch_preflight
short_description: Look whether a host can run edgeorch
description:
  - Returns what the other roles need to know of a host, and one sentence for each thing that is in the way.
  - Runs with an old Python too, so that it can say that it is too old.
options:
  python:
    description: The only Python to look at; empty to search.
    type: str
    default: ""
  ports:
    description: TCP ports that nobody else may have, by the setting that moves them.
    type: dict
    default: {}
  ca:
    description: The fleet's CA certificates as PEM; empty while there is none.
    type: str
    default: ""
  now:
    description: The controller's clock in seconds since 1970.
    type: float
    required: true
  volatile:
    description: Whether a state folder that a restart of the machine empties is accepted.
    type: bool
    default: false
author: edgeorch
"""

EXAMPLES = r"""
- name: Look
  edgeorch_preflight:
    ports: {api.port: 56001, wire.port: 56002}
    now: "{{ now(utc=true).timestamp() }}"
  become: true
"""

RETURN = r"""
target:
  description: >-
    python, python_tag, platform, machine_id, host_key, node_id, hostname, clock_offset_s, systemd, and by
    name the environments below /opt/edgeorch with their digest and whether they work.
  returned: always
  type: dict
problems:
  description: Sentences.
  returned: always
  type: list
  elements: str
"""

import base64
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time

from ansible.module_utils.basic import AnsibleModule

VERSIONS = ((3, 14), (3, 13), (3, 12), (3, 11))
GLIBC = (2, 28)
SYSTEMD = 247
CLOCK_S = 300
NEEDED = {"/opt/edgeorch": 200, "/var/lib/edgeorch": 100}
"""MiB that must be free for programs and state."""
ROOT = "/opt/edgeorch"
SETTINGS = "/etc/edgeorch"
MODULES = ("venv", "ssl", "sqlite3", "ctypes", "zlib")
# The user's site packages and the folder that we are in are not the host's Python.
ASK = """
import importlib.util, json, os, platform, struct, sys, sysconfig
print(json.dumps({
    "python": sys.executable, "version": sys.version_info[:2], "platform": sysconfig.get_platform(),
    "bits": struct.calcsize("P") * 8, "kind": platform.python_implementation(),
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "libc": os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else "",
    "missing": [name for name in %r if importlib.util.find_spec(name) is None],
}))
""" % (MODULES,)


def main():
    """Answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "python": {"type": "str", "default": ""},
            "ports": {"type": "dict", "default": {}},
            "ca": {"type": "str", "default": ""},
            "now": {"type": "float", "required": True},
            "volatile": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    wish = module.params
    target = {"clock_offset_s": round(time.time() - wish["now"], 1)}
    problems = []
    if not sys.platform.startswith("linux"):
        module.exit_json(
            changed=False, target=target, problems=["it is no Linux machine: edgeorch runs on Linux only"]
        )
    python, problem = find_python(wish["python"])
    target.update(python)
    problems += [problem] if problem else []
    target["systemd"], problem = systemd()
    problems += [problem] if problem else []
    if abs(target["clock_offset_s"]) > CLOCK_S:
        problems.append(clock(target["clock_offset_s"]))
    problems += ports(wish["ports"])
    problems += disk()
    problems += [] if wish["volatile"] else volatile("/var/lib/edgeorch")
    problems += other_ca(wish["ca"])
    target["hostname"] = socket.gethostname()
    target["machine_id"] = text("/etc/machine-id")
    target["node_id"] = text(SETTINGS + "/node_id")
    target["host_key"] = host_key()
    target["venvs"] = environments()
    module.exit_json(changed=False, target=target, problems=problems)


def find_python(wanted):
    """Python, tag and platform of the first Python that will do, and the sentence where none does.

    The distribution's own python3 comes first: it stays when others come and go.
    """
    names = [wanted] if wanted else ["python3"] + ["python%d.%d" % version for version in VERSIONS]
    path = os.environ.get("PATH", "") + ":/usr/local/bin:/usr/bin:/bin"
    seen = []
    for name in names:
        program = shutil.which(name, path=path)
        found = ask(program) if program else None
        if not found:
            continue
        problem = unfit(found)
        if not problem:
            tag = "py%d%d" % tuple(found["version"])
            return {"python": found["python"], "python_tag": tag, "platform": found["platform"]}, ""
        seen.append(problem)
    if seen:
        return {}, seen[0]
    if wanted:
        return (
            {},
            "edgeorch_python is %s, and there is no Python that runs: correct it, or install it" % wanted,
        )
    return {}, "it has no Python 3: install Python 3.11 or newer"


def ask(program):
    """What a Python says of itself; None where it does not run."""
    try:
        said = subprocess.check_output([program, "-I", "-c", ASK], stderr=subprocess.DEVNULL, timeout=30)
        return json.loads(said.decode())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def unfit(found):
    """Why a Python will not do; empty where it will."""
    version = "%d.%d" % tuple(found["version"])
    if found["bits"] != 64:
        return "its system is %d-bit (%s) and edgeorch needs a 64-bit one: install the 64-bit image of it" % (
            found["bits"],
            found["platform"],
        )
    if tuple(found["version"]) < VERSIONS[-1]:
        return (
            "its Python is %s and edgeorch needs 3.11 or newer: install one beside it and name it by "
            "edgeorch_python, such as /usr/bin/python3.11" % version
        )
    if tuple(found["version"]) > VERSIONS[0]:
        return (
            "its Python is %s, newer than edgeorch is tested with (%d.%d): name another by edgeorch_python"
            % ((version,) + VERSIONS[0])
        )
    if found["kind"] != "CPython" or found["free_threaded"]:
        return "%s is not the usual CPython: name another by edgeorch_python" % found["python"]
    if found["missing"]:
        return (
            "its Python %s lacks the modules %s: install the whole of it (Debian: apt-get install python3)"
            % (
                version,
                ", ".join(found["missing"]),
            )
        )
    libc = re.match(r"glibc (\d+)\.(\d+)", found["libc"] or "")
    if not libc or (int(libc.group(1)), int(libc.group(2))) < GLIBC:
        return "its C library is %s and edgeorch needs glibc %d.%d or newer: use a newer system" % (
            (found["libc"] or "not glibc", *GLIBC)
        )
    return ""


def systemd():
    """Version of systemd (0: it is not in charge), and the sentence where that will not do."""
    if not os.path.isdir("/run/systemd/system"):
        return 0, "systemd does not run it: edgeorch is a systemd service"
    try:
        said = subprocess.check_output(["systemctl", "--version"], timeout=30).decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return 0, "its systemctl does not run: repair systemd there"
    found = re.match(r"systemd (\d+)", said)
    version = int(found.group(1)) if found else 0
    if version < SYSTEMD:
        return version, "its systemd is %d and edgeorch needs %d or newer: use a newer system" % (
            version,
            SYSTEMD,
        )
    return version, ""


def clock(offset):
    """How wrong a clock is."""
    size, word = abs(offset), "ahead of" if offset > 0 else "behind"
    span = "%d min" % round(size / 60) if size < 7200 else "%d h" % round(size / 3600)
    return "its clock is %s %s the controller's: set whichever is wrong (timedatectl set-ntp true)" % (
        span,
        word,
    )


def ports(wanted):
    """Sentences for ports that somebody else listens on."""
    listening = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in text(table).splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening[int(fields[1].rpartition(":")[2], 16)] = fields[9]
    taken = {setting: int(port) for setting, port in wanted.items() if int(port) in listening}
    if not taken:
        return []
    owners = socket_owners({listening[port] for port in taken.values()})
    problems = []
    for setting, port in sorted(taken.items()):
        pid = owners.get(listening[port])
        # Who has ended since has left the port.
        if pid is None or re.search(r"/edgeorch(-\w+)?\.service", text("/proc/%s/cgroup" % pid)):
            continue
        problems.append(
            "port %d is taken by %s (process %s): stop it, or set another %s in edgeorch_settings"
            % (port, text("/proc/%s/comm" % pid), pid, setting)
        )
    return problems


def socket_owners(inodes):
    """The process of each socket."""
    wanted = {"socket:[%s]" % inode: inode for inode in inodes}
    owners = {}
    for link in glob.iglob("/proc/[0-9]*/fd/*"):
        try:
            inode = wanted.get(os.readlink(link))
        except OSError:  # it has ended
            continue
        if inode:
            owners[inode] = link.split("/")[2]
    return owners


def disk():
    """Sentences for disks that are too full."""
    problems = []
    for folder, needed in sorted(NEEDED.items()):
        free = shutil.disk_usage(existing(folder)).free >> 20
        if free < needed:
            problems.append(
                "%s has %d MB free and edgeorch needs %d there: free some space" % (folder, free, needed)
            )
    return problems


def volatile(folder):
    """A sentence where a folder does not outlive a restart of the machine."""
    path, best = existing(folder), None
    for line in text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        point, kind = left.split()[4], right.split()[0]
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and (best is None or len(point) >= len(best[0])):
            best = (point, kind, right)
    if best is None or best[1] not in ("tmpfs", "ramfs", "overlay"):
        return []
    # The upper folder of a container's root is on its Engine's disk.
    if best[1] == "overlay" and re.search(r"upperdir=[^, ]*/(docker|containerd?s?)/", best[2]):
        return []
    return [
        "%s is on %s, so a restart of the machine may forget accepted tasks: mount a disk there, or accept "
        "it by edgeorch_volatile=true" % (folder, best[1])
    ]


def existing(path):
    """The nearest folder that exists, links followed."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.path.realpath(path)


def other_ca(ours):
    """A sentence where the host has certificates of another fleet's CA, or of an earlier one of this name."""
    there = certificates(text(SETTINGS + "/pki/ca.pem"))
    if not ours or not there or there & certificates(ours):
        return []
    return [
        "it has a certificate of another CA in %s/pki: remove edgeorch there first (remove.yml with "
        "edgeorch_purge=true), or use the edgeorch_home that it was deployed from" % SETTINGS
    ]


def certificates(pem):
    """The fingerprints of a PEM bundle."""
    bodies = re.findall(r"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", pem, re.DOTALL)
    return {hashlib.sha256("".join(body.split()).encode()).hexdigest() for body in bodies}


def host_key():
    """The fingerprint of the SSH host key as ssh-keygen prints it; empty where there is none."""
    for kind in ("ed25519", "ecdsa", "rsa"):
        fields = text("/etc/ssh/ssh_host_%s_key.pub" % kind).split()
        if len(fields) > 1:
            digest = hashlib.sha256(base64.b64decode(fields[1])).digest()
            return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
    return ""


def environments():
    """By name: the digest of each installed environment, and whether its Python still runs it."""
    found = {}
    for marker in glob.glob(ROOT + "/*-py3*/.edgeorch.json"):
        folder = os.path.dirname(marker)
        if os.path.islink(folder):
            continue
        try:
            digest = json.loads(text(marker))["digest"]
        except (ValueError, KeyError):
            continue
        python = [folder + "/bin/python", "-c", "import edgeorch, ssl, sqlite3"]
        try:
            works = subprocess.call(python, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
        except OSError:
            works = False
        found[os.path.basename(folder)] = {"digest": digest, "works": works}
    return found


def text(path):
    """A file's text without the space around it; empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
