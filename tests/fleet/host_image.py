"""The image of a test host: Debian with systemd, SSH, sudo and a Docker Engine, made by debootstrap.

It is minimal on purpose, as machines in the field are: no pip, no venv module, no ``ensurepip``.
"""

import fcntl
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

IMAGE = "edgeorch-fleet-host:bookworm"
RELEASE = "bookworm"
USER = "pi"
"""May use sudo without a password."""
CAREFUL_USER, CAREFUL_PASSWORD = "pat", "raspberry"
"""May use sudo with this password only."""

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "openssh-server", "sudo", "iproute2", "procps", "kmod"),
    *("python3", "curl", "ca-certificates", "docker.io", "iptables", "nftables", "ufw", "libfaketime"),
)
# What debootstrap, which knows no alternatives, cannot resolve the needs of.
BY_APT = ("firewalld",)
LABEL = "edgeorch.recipe"
_ASK_RECIPE = f'{{{{index .Config.Labels "{LABEL}"}}}}'
BUILD_S = 900

# Each host makes its own: a host key of the image would make all hosts clones of one another.
_HOST_KEYS = """\
[Unit]
Description=SSH host keys of this very host
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key

[Install]
WantedBy=ssh.service
"""
_SSHD = """\
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PasswordAuthentication no
PermitRootLogin no
MaxStartups 64:30:128
"""
_FILES = {
    "etc/systemd/system/host-keys.service": (_HOST_KEYS, 0o644),
    "etc/ssh/sshd_config.d/test.conf": (_SSHD, 0o644),
    "etc/sudoers.d/users": (f"{USER} ALL=(ALL) NOPASSWD: ALL\n{CAREFUL_USER} ALL=(ALL) ALL\n", 0o440),
}
_INSIDE = f"""\
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install -y --no-install-recommends {" ".join(BY_APT)} >/dev/null
# A firewall is up only where a test wants one.
systemctl -q mask firewalld.service
useradd --create-home --shell /bin/bash {USER}
useradd --create-home --shell /bin/bash {CAREFUL_USER}
echo {CAREFUL_USER}:{CAREFUL_PASSWORD} | chpasswd
systemctl -q enable host-keys.service
# The Engine is started only where a test wants it: it costs each host memory and a second of its start.
systemctl -q mask docker.service docker.socket containerd.service
systemctl -q disable e2scrub_reap.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer \
    fstrim.timer dpkg-db-backup.timer || true
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id
: >/etc/machine-id
"""
_LEFT_OUT = ("proc/*", "sys/*", "dev/*", "run/*", "var/cache/apt/*", "var/lib/apt/lists/*")
_LEFT_OUT += ("usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "var/log/*.log")


@functools.cache
def host_image():
    """Build the image unless the Engine has it from this very recipe; return its name.

    Takes one to three minutes the first time, with Debian's mirror at hand.
    """
    # Two test runs on one machine build it once.
    with Path(tempfile.gettempdir(), "edgeorch-fleet-host.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = _run("docker", "image", "inspect", "--format", _ASK_RECIPE, IMAGE, check=False)
        if known.stdout.strip() == recipe():
            return IMAGE
        # /tmp may be kept in memory, or refuse device files.
        with tempfile.TemporaryDirectory(prefix="edgeorch-fleet-host-", dir="/var/tmp") as folder:
            root = Path(folder, "root")
            include = f"--include={','.join(PACKAGES)}"
            _run("debootstrap", "--variant=minbase", include, RELEASE, str(root))
            finish(root)
    return IMAGE


@functools.cache
def recipe():
    """What the image was made from: a changed recipe makes a new image."""
    parts = (RELEASE, PACKAGES, _FILES, _INSIDE, _LEFT_OUT)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def finish(root):
    """Turn a fresh root folder into the image."""
    # For the package index, until the host writes its own.
    shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
    for name, (text, mode) in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    _run("chroot", str(root), "/bin/sh", "-c", _INSIDE)
    tar = ["tar", "-C", str(root), *(f"--exclude=./{pattern}" for pattern in _LEFT_OUT), "-c", "."]
    load = ["docker", "import", "--change", f"LABEL {LABEL}={recipe()}", "-", IMAGE]
    with subprocess.Popen(tar, stdout=subprocess.PIPE) as archive, archive.stdout:
        subprocess.run(load, stdin=archive.stdout, check=True, timeout=BUILD_S, capture_output=True)
    if archive.returncode != 0:
        raise AssertionError(f"tar of {root} ended with {archive.returncode}")


def _run(*argv, check=True):
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=BUILD_S, check=False)
    if check and answer.returncode != 0:
        raise AssertionError(f"{' '.join(argv)}: {(answer.stdout + answer.stderr)[-2000:]}")
    return answer
