"""Images and commands for tests that need a Docker Engine. No registry is asked: images are made here."""

import io
import json
import os
import shutil
import subprocess
import tarfile

BUSYBOX = "busybox:local"
_APPLETS = ("sh", "echo", "true", "false", "sleep", "cat", "head", "seq", "printf", "yes", "dd", "env", "id")


def docker(*args, check=True, timeout=60, command="docker"):
    answer = subprocess.run([command, *args], capture_output=True, text=True, timeout=timeout, check=False)
    if check and answer.returncode != 0:
        raise AssertionError(f"docker {' '.join(args)}: {answer.stderr}")
    return answer


def busybox_image():
    """Make ``busybox:local`` from the machine's static busybox unless it is there; return its name."""
    if docker("image", "inspect", BUSYBOX, check=False).returncode == 0:
        return BUSYBOX
    program = shutil.which("busybox") or "/bin/busybox"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for folder in ("bin", "tmp", "etc"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(program, "bin/busybox", filter=_by_root)
        for applet in _APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    subprocess.run(
        ["docker", "import", "-", BUSYBOX],
        input=archive.getvalue(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    return BUSYBOX


def _by_root(entry):
    entry.uid = entry.gid = 0
    return entry


def inspect(*ids):
    return json.loads(docker("inspect", *ids).stdout) if ids else []


def remove(*ids):
    if ids:
        docker("rm", "-f", "-v", *ids, check=False)


def matching_docker():
    """The ``docker`` on PATH that has the Engine's own major version, else the first one, and its major.

    ``EDGEORCH_TEST_DOCKER`` names another one.
    """
    chosen = os.environ.get("EDGEORCH_TEST_DOCKER")
    server = docker("version", "--format", "{{.Server.Version}}").stdout.partition(".")[0]
    found = []
    for folder in os.environ["PATH"].split(os.pathsep):
        command = chosen or f"{folder}/docker"
        if os.access(command, os.X_OK):
            version = docker("version", "--format", "{{.Client.Version}}", command=command).stdout
            found.append((command, int(version.partition(".")[0])))
    return next((pair for pair in found if str(pair[1]) == server), found[0])
