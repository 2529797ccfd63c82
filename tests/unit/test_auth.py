import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from edgeorch.config import Api
from edgeorch.errors import (
    ConfigError,
    ForbiddenError,
    TooManyRequestsError,
    UnauthorizedError,
    UnsupportedMediaTypeError,
)
from edgeorch.model import Caller
from edgeorch.rest import auth
from edgeorch.rest.auth import FailedTries, Tokens, check_browser
from edgeorch.rest.tokens import hash_of, new_text, read_tokens, write_tokens

NOW = 1_800_000_000.0  # 2027-01-15
FAR = "192.0.2.9"
LAPTOP, OLD = new_text(), new_text()


def entry(name, text, role="submit", expires=None):
    line = f"expires = {expires}\n" if expires else ""
    return (
        f'[[token]]\nname = "{name}"\nrole = "{role}"\nsha256 = "{hash_of(text)}"\n'
        f"created = 2026-01-01T00:00:00Z\n{line}\n"
    )


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tokens.toml"
    path.write_text(entry("laptop", LAPTOP) + entry("old", OLD, "admin", "2027-01-01T00:00:00Z"))
    return path


@pytest.fixture
def tokens(path, clock):
    return Tokens(path, Api(), clock=clock)


def refused(tokens, header, kind=UnauthorizedError, address=FAR):
    with pytest.raises(kind) as caught:
        tokens.authenticate(header, address, NOW)
    return caught.value


def test_a_token(tokens):
    caller = tokens.authenticate(f"Bearer {LAPTOP}", FAR, NOW)
    assert caller == Caller(token="laptop", role="submit", loopback=False, address=FAR)
    assert tokens.authenticate(f"bearer  {LAPTOP} ", "127.0.0.2", NOW).loopback


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("", "not Bearer"),
        ("Bearer", "not Bearer"),
        ("Bearer ", "not Bearer"),
        (f"Basic {LAPTOP}", "not Bearer"),
        (LAPTOP, "not Bearer"),
        ("Bearer " + "x" * 10_000, "not Bearer"),
        (f"Bearer {LAPTOP}x", "unknown or revoked"),
        (f"Bearer {LAPTOP.upper()}", "unknown or revoked"),
        (f"Bearer {hash_of(LAPTOP)}", "unknown or revoked"),
        ("Bearer ä\udcff", "unknown or revoked"),
        (f"Bearer {OLD}", "'old' has expired"),
    ],
)
def test_what_is_refused_and_logged_without_the_token(tokens, header, said):
    with capture_logs() as logs:
        error = refused(tokens, header)
    assert said in error.detail
    assert logs[0]["address"] == FAR
    for secret in (LAPTOP, OLD, hash_of(LAPTOP)):
        assert secret not in repr(logs)
        assert secret not in str(error)


def test_every_guess_is_compared_with_every_token_in_constant_time(tokens, monkeypatch):
    compared = []

    def compare(left, right):
        compared.append((len(left), len(right)))
        return left == right

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    for guess in ("x", LAPTOP[:-1], LAPTOP[:-1] + "!", OLD + "x"):
        refused(tokens, f"Bearer {guess}")
    tokens.authenticate(f"Bearer {LAPTOP}", FAR, NOW)
    # Hashes, never texts, and the first match ends nothing.
    assert compared == [(64, 64)] * 2 * 5


def test_no_token(tokens, path, clock):
    refused(tokens, None)
    refused(tokens, None, address="127.0.0.1")
    open_here = Tokens(path, Api(anonymous_role="submit"), clock=clock)
    caller = open_here.authenticate(None, "::1", NOW)
    assert caller == Caller(token="anonymous", role="submit", loopback=True, address="::1")
    refused(open_here, None)
    # A wrong token is not the same as none.
    refused(open_here, "Bearer wrong", address="127.0.0.1")


def test_too_many_failures_from_one_address(tokens, clock):
    for _ in range(30):
        refused(tokens, "Bearer wrong")
    with capture_logs() as logs:
        assert "try again in 2 s" in refused(tokens, "Bearer wrong", TooManyRequestsError).hint
    assert not logs
    refused(tokens, "Bearer wrong", address="192.0.2.10")
    assert tokens.authenticate(f"Bearer {LAPTOP}", FAR, NOW).token == "laptop"
    clock.now += 2.0
    refused(tokens, "Bearer wrong")
    refused(tokens, "Bearer wrong", TooManyRequestsError)
    clock.now += 60.0
    for _ in range(30):
        refused(tokens, "Bearer wrong")
    refused(tokens, "Bearer wrong", TooManyRequestsError)


def test_an_ipv6_network_counts_as_one_and_memory_is_bounded():
    tries = FailedTries(1, kept=10)
    assert tries.add("2001:db8::1", 0.0) == 0.0
    assert tries.add("2001:db8::2", 0.0) > 0
    assert tries.add("2001:db8:0:1::1", 0.0) == 0.0
    assert tries.add("::ffff:192.0.2.1", 0.0) == 0.0
    assert tries.add("::ffff:192.0.2.2", 0.0) == 0.0
    for number in range(100):
        tries.add(f"10.0.0.{number}", 0.0)
    assert len(tries._spent) == 10


def test_a_changed_file_counts_within_a_second(tokens, path, clock):
    fresh = new_text()
    path.write_text(entry("phone", fresh, "read"))
    clock.now += 0.5
    refused(tokens, f"Bearer {fresh}")
    clock.now += 0.5
    assert tokens.authenticate(f"Bearer {fresh}", FAR, NOW).role == "read"
    refused(tokens, f"Bearer {LAPTOP}")
    path.unlink()
    clock.now += 1.0
    refused(tokens, f"Bearer {fresh}")


def test_a_broken_file_keeps_the_old_tokens_and_is_told_once(tokens, path, clock):
    path.write_text("[[token")
    with capture_logs() as logs:
        for _ in range(3):
            clock.now += 1.0
            assert tokens.authenticate(f"Bearer {LAPTOP}", FAR, NOW).token == "laptop"
    assert len(logs) == 1
    assert "not valid TOML" in logs[0]["reason"]
    with pytest.raises(ConfigError):
        tokens.reload()
    path.write_text(entry("laptop", LAPTOP, "admin"))
    clock.now += 1.0
    assert tokens.authenticate(f"Bearer {LAPTOP}", FAR, NOW).role == "admin"


def test_a_change_of_the_same_size_and_time_is_seen(tokens, path, clock):
    before = path.stat()
    other = path.with_name("new")
    other.write_text(path.read_text().replace("laptop", "tablet"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    clock.now += 1.0
    assert tokens.authenticate(f"Bearer {LAPTOP}", FAR, NOW).token == "tablet"


def test_files_at_start(tmp_path, clock):
    refused(Tokens(tmp_path / "none.toml", Api(), clock=clock), f"Bearer {LAPTOP}")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="folder: Is a directory"):
        Tokens(tmp_path / "folder", Api(), clock=clock)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[token]]", "missing required field"),
        ("token = 1", "Expected `array`"),
        (entry("a", "x").replace("submit", "root"), "role"),
        (entry("a", "x").replace("sha256", "sha257"), "sha25"),
        (entry("a", "x").replace("00Z", "00"), "created"),
        (entry("a b", "x"), "name"),
        (entry("a", "x") + entry("a", "y"), "'a' is used twice"),
        (entry("anonymous", "x"), "reserved"),
        ("\xff", "not valid TOML"),
        ("a = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_token_files_that_are_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        read_tokens(text.encode("latin-1"), "tokens.toml")


def test_writing_and_reading_agree():
    text = entry("a", "x") + entry("b", "y", "admin", "2027-01-01T00:00:00Z")
    tokens = read_tokens(text.encode(), "t")
    assert read_tokens(write_tokens(tokens), "t") == tokens
    assert read_tokens(write_tokens(()), "t") == ()


def test_token_texts_are_long_and_differ():
    texts = {new_text() for _ in range(100)}
    assert len(texts) == 100
    assert all(len(text) == len("edgeorch_") + 32 for text in texts)


@given(st.text(max_size=300))
def test_no_header_crashes(header):
    clock = Clock()
    tokens = Tokens(path=_Missing(), api=Api(), clock=clock)
    with pytest.raises((UnauthorizedError, TooManyRequestsError)):
        tokens.authenticate(header, random.choice((FAR, "127.0.0.1", "", "x")), NOW)


class _Missing:
    def stat(self):
        raise FileNotFoundError


GOOD = {"host": "127.0.0.1:56001"}


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost"},
        {"host": "LocalHost:56001"},
        {"host": "127.0.0.3:56001"},
        {"host": "[::1]:56001"},
        GOOD | {"origin": "http://127.0.0.1:56001", "content-type": "application/json"},
        GOOD | {"origin": "http://127.0.0.1:56001"},
        GOOD | {"content-type": "application/json; charset=utf-8"},
        GOOD | {"content-type": "application/octet-stream"},
    ],
)
def test_local_requests(headers):
    check_browser(headers)


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ({}, ForbiddenError),
        ({"host": ""}, ForbiddenError),
        ({"host": "evil.example:56001"}, ForbiddenError),
        ({"host": "127.0.0.1.evil.example"}, ForbiddenError),
        ({"host": "192.0.2.1:56001"}, ForbiddenError),
        ({"host": "[::1"}, ForbiddenError),
        ({"host": "evil.example@localhost/x"}, ForbiddenError),
        ({"host": "localhost/x"}, ForbiddenError),
        (GOOD | {"origin": "null"}, ForbiddenError),
        (GOOD | {"origin": "http://evil.example"}, ForbiddenError),
        (GOOD | {"origin": "http://127.0.0.1:3000"}, ForbiddenError),
        (GOOD | {"origin": "http://localhost:56001"}, ForbiddenError),
        (GOOD | {"origin": "http://[::1"}, ForbiddenError),
        (GOOD | {"content-type": "text/plain"}, UnsupportedMediaTypeError),
        (GOOD | {"content-type": "Text/Plain;charset=UTF-8"}, UnsupportedMediaTypeError),
        (GOOD | {"content-type": "application/x-www-form-urlencoded"}, UnsupportedMediaTypeError),
        (GOOD | {"content-type": "multipart/form-data; boundary=x"}, UnsupportedMediaTypeError),
        (
            GOOD | {"origin": "http://127.0.0.1:56001", "content-type": "application/octet-stream"},
            UnsupportedMediaTypeError,
        ),
    ],
)
def test_what_a_page_of_another_site_would_send(headers, kind):
    with pytest.raises(kind):
        check_browser(headers)
