"""What lies in the database in place of secrets, and the key that opens it."""

import stat

import pytest
from cryptography.fernet import Fernet

from edgeorch.errors import ConfigError, StorageError
from edgeorch.secret import Secret
from edgeorch.store.sealing import FILE, Sealer, read_keys, write_keys

SECRETS = {"password": Secret(b"hunter2"), "key": Secret(bytes(range(256)))}


def test_what_is_sealed_opens_again_and_shows_nothing(tmp_path):
    sealer = Sealer.load(tmp_path)
    sealed = sealer.seal("task", SECRETS)
    assert b"hunter2" not in sealed
    assert b"password" not in sealed
    assert Sealer.load(tmp_path).open("task", sealed) == SECRETS
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_one_tasks_secrets_cannot_be_passed_off_as_anothers(tmp_path):
    sealer = Sealer.load(tmp_path)
    with pytest.raises(StorageError, match="another task's"):
        sealer.open("other", sealer.seal("task", SECRETS))


@pytest.mark.parametrize(
    "sealed", [None, b"", b"rubbish", Sealer([Fernet.generate_key()]).seal("task", SECRETS)]
)
def test_what_does_not_open_is_an_error_that_says_what_to_do(tmp_path, sealed):
    with pytest.raises(StorageError) as caught:
        Sealer.load(tmp_path).open("task", sealed)
    assert caught.value.hint


def test_a_new_key_seals_and_the_old_one_still_opens(tmp_path):
    sealer = Sealer.load(tmp_path)
    before, fingerprint = sealer.seal("task", SECRETS), sealer.fingerprint(b"digest")
    write_keys(tmp_path / FILE, [Fernet.generate_key(), *read_keys(tmp_path / FILE)])
    sealer.reload(tmp_path)
    after = sealer.seal("task", SECRETS)
    assert sealer.open("task", before) == sealer.open("task", after) == SECRETS
    assert sealer.matches(fingerprint, b"digest")
    newest = Sealer(read_keys(tmp_path / FILE)[:1])
    assert newest.open("task", after) == SECRETS
    with pytest.raises(StorageError):
        newest.open("task", before)


def test_a_fingerprint_is_of_no_use_without_the_key(tmp_path):
    one, other = Sealer.load(tmp_path), Sealer([Fernet.generate_key()])
    assert one.fingerprint(b"digest") == one.fingerprint(b"digest") != other.fingerprint(b"digest")
    assert not one.matches(one.fingerprint(b"digest"), b"guess")


@pytest.mark.parametrize("text", [b"", b"no key\n", b"short=\n"])
def test_a_damaged_file_is_never_replaced_by_a_new_key(tmp_path, text):
    (tmp_path / FILE).write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        Sealer.load(tmp_path)
    assert "backup" in caught.value.hint
    assert (tmp_path / FILE).read_bytes() == text


def test_a_reload_keeps_the_old_keys_where_the_file_is_gone(tmp_path):
    sealer = Sealer.load(tmp_path)
    sealed = sealer.seal("task", SECRETS)
    (tmp_path / FILE).unlink()
    with pytest.raises(ConfigError):
        sealer.reload(tmp_path)
    assert sealer.open("task", sealed) == SECRETS
    assert not (tmp_path / FILE).exists()
