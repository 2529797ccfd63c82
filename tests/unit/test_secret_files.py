"""Secrets as files in memory; /dev/shm is the file system in memory that every machine has."""

import stat
import tempfile
from pathlib import Path

import pytest

from edgeorch.executor.container_secrets import mode_for
from edgeorch.secret import Secret
from edgeorch.secret_files import SecretFiles

SECRETS = {"password": Secret(b"hunter2\n"), "a.pem": Secret(b"")}


@pytest.fixture
def memory():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def modes(folder):
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}


def test_each_secret_is_a_file_that_only_its_user_reads(memory):
    files = SecretFiles(memory / "secrets")
    assert not files.missing
    folder = files.write("task.1", SECRETS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "password": b"hunter2\n",
        "a.pem": b"",
    }
    assert modes(folder) == {"task.1": 0o700, "password": 0o600, "a.pem": 0o600}
    assert modes(folder.parent) == {"secrets": 0o700, "task.1": 0o700}


def test_a_second_write_leaves_what_a_container_may_have_mounted(memory):
    files = SecretFiles(memory / "secrets")
    before = (files.write("task.1", SECRETS) / "password").stat().st_ino
    assert (files.write("task.1", SECRETS) / "password").stat().st_ino == before


def test_removed_and_swept(memory):
    left = SecretFiles(memory / "secrets")
    for key in ("running.1", "gone.1"):
        left.write(key, SECRETS)
    files = SecretFiles(memory / "secrets")
    files.write("mine.1", SECRETS)
    files.sweep({"running.1"})
    assert sorted(path.name for path in (memory / "secrets").iterdir()) == ["mine.1", "running.1"]
    files.remove("mine.1")
    files.remove("mine.1")
    assert [path.name for path in (memory / "secrets").iterdir()] == ["running.1"]
    SecretFiles(memory / "nothing").sweep()


def test_a_folder_on_a_disk_is_refused_by_name_and_stays_empty(tmp_path):
    files = SecretFiles(tmp_path / "secrets")
    if not files.missing:
        pytest.skip("pytest's folder is in memory")
    assert str(tmp_path) in files.missing
    with pytest.raises(OSError, match="in memory only"):
        files.write("task.1", SECRETS)
    assert not (tmp_path / "secrets").exists()


@pytest.mark.parametrize(
    ("user", "host", "remapped", "mode"),
    [
        ("", {}, False, 0o600),
        ("root:root", {}, False, 0o600),
        ("1000", {}, False, 0o600),
        ("1001:1001", {}, False, 0o444),
        ("postgres", {}, False, 0o444),
        ("0", {"CapDrop": ["ALL"]}, False, 0o444),
        ("0", {"CapDrop": ["cap_dac_override"]}, False, 0o444),
        ("0", {"CapDrop": ["ALL"], "CapAdd": ["DAC_OVERRIDE"]}, False, 0o600),
        ("0", {"CapDrop": ["NET_RAW"]}, False, 0o600),
        ("", {}, True, 0o444),
    ],
)
def test_a_containers_file_is_0600_where_its_user_can_read_that(monkeypatch, user, host, remapped, mode):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert mode_for(user, {"CapAdd": None, "CapDrop": None} | host, remapped=remapped) == mode


def test_a_secret_is_never_shown():
    assert "hunter2" not in f"{SECRETS} {SECRETS['password']!r} {SECRETS['password']}"
