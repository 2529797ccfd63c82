"""What the node makes of the machine under it."""

from pathlib import Path

import pytest

from edgeorch.host import clock_synchronised, why_volatile

MOUNTS = """\
22 1 0:21 / / rw,relatime - {root} /dev/root rw
23 22 0:22 / /var/lib rw - ext4 /dev/sda1 rw
24 22 0:23 / /run rw - tmpfs tmpfs rw
25 22 0:24 / /srv/with\\040space rw - ramfs none rw
26 23 0:25 / /var/lib/edgeorch rw shared:3 master:1 - ext4 /dev/sda2 rw
27 26 0:26 / /var/lib/edgeorch rw - {over} none rw
"""


@pytest.mark.parametrize(
    ("root", "over", "folder", "why"),
    [
        ("ext4", "ext4", "/var/lib/edgeorch", ""),
        ("ext4", "ext4", "/run/edgeorch", "/run/edgeorch is in memory (tmpfs)"),
        ("ext4", "ext4", "/srv/with space/state", "/srv/with space/state is in memory (ramfs)"),
        ("overlay", "ext4", "/home/pi", "/home/pi is on an overlay, not on a disk"),
        ("overlay", "ext4", "/var/lib/edgeorch/state", ""),
        ("ext4", "tmpfs", "/var/lib/edgeorch", "/var/lib/edgeorch is in memory (tmpfs)"),
        ("ext4", "tmpfs", "/var/lib/edgeorch-old", ""),
    ],
)
def test_which_folder_a_restart_would_empty(tmp_path, root, over, folder, why):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(root=root, over=over))
    assert why_volatile(Path(folder), mounts) == why


def test_where_mounts_cannot_be_read_nothing_is_claimed(tmp_path):
    assert why_volatile(Path("/run"), tmp_path / "missing") == ""


def test_this_machine_is_read_too():
    assert why_volatile(Path("/dev/shm")) == "/dev/shm is in memory (tmpfs)"
    assert why_volatile(Path("/proc")) == ""


def test_the_kernel_says_whether_the_clock_is_kept():
    assert clock_synchronised() in (True, False)
