import subprocess
import sys

import pytest

from edgeorch.client.endpoint import complete_url, resolve
from edgeorch.errors import ConfigError, EdgeorchError, InvalidRequestError


@pytest.fixture
def home(tmp_path):
    """An environment whose only configuration is in the given folder."""
    (tmp_path / "edgeorch").mkdir()
    return tmp_path


def resolved(home, *given, **env):
    nowhere = home / "none.toml"
    return resolve(*given, env={"XDG_CONFIG_HOME": str(home), **env}, node_config=nowhere)


def write(home, text):
    path = home / "edgeorch" / "config.toml"
    path.write_text(text)
    return path


def test_the_first_that_says_something_wins_value_by_value(home):
    write(home, 'url = "attic.lan"\ntoken = "file"\nca = "ca.pem"\n')
    found = resolved(home, "kitchen", EDGEORCH_URL="garage", EDGEORCH_TOKEN="s3cret")
    assert (found.url, found.token) == ("https://kitchen:56001", "s3cret")
    assert found.ca == str(home / "edgeorch" / "ca.pem"), "relative to the file that names it"
    assert found.origins["token"] == "environment"
    assert "s3cret" not in repr(found), "a token is not for logs"


def test_without_anything_it_is_the_node_of_this_machine(home):
    assert resolved(home).url == "http://127.0.0.1:56001"


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("[]", "http://127.0.0.1:4000"),
        ('["192.0.2.7"]', "https://192.0.2.7:4000"),
        ('["192.0.2.7", "127.0.0.2"]', "http://127.0.0.2:4000"),
        ('["fd00::7"]', "https://[fd00::7]:4000"),
        ('["::"]', "http://[::1]:4000"),
    ],
)
def test_on_a_node_its_own_configuration_tells(home, listen, url):
    config = home / "edgeorch.toml"
    config.write_text(f"[node]\nlisten = {listen}\n[api]\nport = 4000\n")
    (home / "pki").mkdir()
    (home / "pki" / "ca.pem").write_text("x")
    found = resolve(env={"XDG_CONFIG_HOME": str(home)}, node_config=config)
    assert found.url == url
    assert found.ca == str(home / "pki" / "ca.pem")


@pytest.mark.parametrize("text", ['url = "a', "url = 7", 'urk = "a"'])
def test_a_broken_user_file_is_named(home, text):
    path = write(home, text)
    with pytest.raises(ConfigError, match=str(path)):
        resolved(home)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("kitchen", "https://kitchen:56001"),
        ("localhost", "http://localhost:56001"),
        ("192.0.2.1:80", "https://192.0.2.1:80"),
        ("https://kitchen/", "https://kitchen:56001"),
        ("http://127.0.0.3:5000", "http://127.0.0.3:5000"),
        ("fd00::1", "https://[fd00::1]:56001"),
        ("[::1]:99", "http://[::1]:99"),
    ],
)
def test_addresses_are_completed(text, url):
    assert complete_url(text) == url


@pytest.mark.parametrize(
    "text",
    ["", "http://kitchen", "ftp://kitchen", "https://u:p@kitchen", "kitchen/x", "kitchen:x", "https://"],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(InvalidRequestError):
        complete_url(text)


def test_a_ca_file_that_is_none_is_named(home):
    from edgeorch import Client

    (home / "ca.pem").write_text("not a certificate")
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        Client("https://kitchen", ca=str(home / "ca.pem"))
    with pytest.raises(EdgeorchError, match=r"missing\.pem"):
        Client("https://kitchen", ca=str(home / "missing.pem"))


def test_importing_the_package_loads_neither_client_nor_trio():
    code = "import edgeorch, sys; print(sorted({'trio', 'httpx2', 'click'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
