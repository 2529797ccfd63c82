"""Keys, CA and tokens on real hosts: replaced under load, revoked, refused with a sentence."""

import contextlib
import json
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from controller import eventually
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from steady_load import RATE, SteadyLoad

from edgeorch.identity import issue
from edgeorch.identity.authority import Authority

NAMES = ("n1", "n2", "n3", "n4")
ROTATION_S = 60
OUT_S = 10


def served(fleet, name):
    """The certificate that a node shows, in PEM."""
    return ssl.get_server_certificate((fleet.hosts[name].address, 56001), timeout=10)


def bundle(fleet):
    return x509.load_pem_x509_certificates((fleet.state / "ca.pem").read_bytes())


def processes(fleet):
    """The node's process on each host and when it was started."""
    ask = ("systemctl", "show", "edgeorch", "-p", "MainPID,NRestarts,ExecMainStartTimestamp")
    return {name: fleet.hosts.run(name, *ask).stdout for name in NAMES}


def all_see_all(fleet):
    return all(set(fleet.node(name).sees().values()) == {"alive"} for name in NAMES)


@pytest.fixture
def passphrase(fleet):
    """Protects the CA's key with a passphrase for the time of a test, and gives it."""
    path, text = fleet.state / "ca.key", "correct horse battery staple"
    plain = path.read_bytes()
    key = load_pem_private_key(plain, None)
    protected = BestAvailableEncryption(text.encode())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protected))
    yield text
    path.write_bytes(plain)


def test_keys_and_ca_are_replaced_under_load(fleet, figures):
    before, old_ca, running = {n: served(fleet, n) for n in NAMES}, bundle(fleet), processes(fleet)
    with SteadyLoad(fleet, NAMES) as load:
        start = time.monotonic()
        keys = fleet.play("rotate-keys")
        between = {n: served(fleet, n) for n in NAMES}
        ca = fleet.play("rotate-keys", "-e", "rotate_ca=true")
        seconds = time.monotonic() - start
    figures(f"keys of {len(NAMES)} hosts replaced", keys.seconds, ROTATION_S)
    figures(f"keys and CA of {len(NAMES)} hosts replaced", ca.seconds)
    assert load.failures == []
    assert load.sent >= RATE * (seconds - 1)
    after = {n: served(fleet, n) for n in NAMES}
    assert all(len({before[n], between[n], after[n]}) == 3 for n in NAMES)
    (new_ca,) = bundle(fleet)
    assert [new_ca] != old_ca
    assert processes(fleet) == running
    assert fleet.play("deploy", "--tags", "keys").changed == 0
    for name in NAMES:
        assert (
            fleet.hosts.run(name, "cat", "/etc/edgeorch/pki/ca.pem").stdout
            == (fleet.state / "ca.pem").read_text()
        )
        assert "next.key" not in fleet.hosts.run(name, "ls", "/etc/edgeorch/pki").stdout


def test_the_old_ca_stays_until_a_host_that_is_off_has_its_certificate(fleet):
    old = bundle(fleet)
    fleet.hosts.stop("n4")
    try:
        stopped = fleet.play("rotate-keys", "-e", "rotate_ca=true", check=False)
        assert stopped.returncode != 0
        assert any("no certificate of the new one yet on n4" in said for said in stopped.failures.values())
        assert len(bundle(fleet)) == 2
    finally:
        fleet.hosts.start("n4")
    kept = served(fleet, "n1")
    fleet.play("rotate-keys", "-e", "rotate_ca=true")
    assert len(bundle(fleet)) == 1
    assert bundle(fleet) != old
    assert served(fleet, "n1") == kept  # it had its new key from the first time
    eventually(lambda: all_see_all(fleet), "all see all")


def test_a_revoked_node_is_out_also_at_a_host_that_was_off(fleet, figures):
    fleet.hosts.stop("n3")
    try:
        play = fleet.play("revoke", "-e", "edgeorch_node=n4")
        done = time.monotonic()
        assert "n3 did not answer" in play.output
        eventually(
            lambda: all(fleet.node(n).sees()["n4"] != "alive" for n in ("n1", "n2")), "n4 is out", OUT_S
        )
        figures("a revoked node is out after", time.monotonic() - done, OUT_S)
    finally:
        fleet.hosts.start("n3")
    eventually(lambda: fleet.node("n3").sees()["n1"] == "alive", "n3 is back", 60)
    back = time.monotonic()
    eventually(lambda: fleet.node("n3").sees().get("n4") != "alive", "n4 is out at n3 too", OUT_S)
    figures("at a host that was off, after", time.monotonic() - back, OUT_S)

    refused = fleet.play("deploy", "--tags", "keys", check=False)
    assert "n4" in refused.failures
    assert "is revoked" in refused.failures["n4"]
    assert "remove node_id and pki below /etc/edgeorch" in refused.failures["n4"]
    fleet.hosts.run("n4", "systemctl stop edgeorch && rm -r /etc/edgeorch/node_id /etc/edgeorch/pki")
    fleet.play("deploy", "--limit", "n4")
    eventually(lambda: fleet.node("n1").sees().get("n4") == "alive", "n4 is in again", 60)


@contextlib.contextmanager
def watching_processes(secret):
    """Collects what shows a secret in its arguments or environment, on this machine and in the test hosts."""
    found, over = set(), threading.Event()

    def watch():
        while not over.wait(0.05):
            for what in (*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")):
                with contextlib.suppress(OSError):
                    if secret in (text := what.read_bytes()):
                        found.add(text)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def test_the_passphrase_opens_the_ca_and_shows_nowhere(fleet, passphrase, tmp_path):
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("edgeorch_ca_passphrase: not this one\n")
    refused = fleet.play("rotate-keys", "-e", f"@{wrong}", check=False)
    assert refused.returncode != 0
    assert any(
        "passphrase is wrong: set edgeorch_ca_passphrase" in said for said in refused.failures.values()
    )

    secrets, password = tmp_path / "secrets.yml", tmp_path / "vault-password"
    secrets.write_text(f"edgeorch_ca_passphrase: {passphrase}\n")
    password.write_text("open sesame\n")
    vault = Path(sys.executable).with_name("ansible-vault")
    subprocess.run([vault, "encrypt", "--vault-password-file", password, secrets], check=True)
    with watching_processes(passphrase.encode()) as found:
        with_vault = ("-e", f"@{secrets}", "--vault-password-file", str(password))
        play = fleet.play("rotate-keys", "-vvv", *with_vault)
    assert passphrase not in play.output
    assert not found


def test_a_ca_that_has_expired_is_named_and_replaced(new_hosts):
    small = new_hosts(1, installed=True)
    Authority.create(small.state, "home", wall=lambda: time.time() - (issue.CA_DAYS + 1) * issue.DAY)
    refused = small.play("deploy", check=False)
    assert refused.returncode != 0
    (said,) = refused.failures.values()
    assert "the fleet's CA expired" in said
    assert "rotate-keys.yml with -e rotate_ca=true" in said
    small.play("rotate-keys", "-e", "rotate_ca=true")
    small.play("deploy")
    assert small.node("n1").sees() == {"n1": "alive"}


def test_a_controller_in_the_wrong_folder_takes_no_node_over(fleet, tmp_path):
    play = fleet.play(
        "deploy", "--tags", "keys", "--limit", "n1", "-e", f"edgeorch_home={tmp_path}", check=False
    )
    assert play.returncode != 0
    assert "another CA" in play.failures["n1"]
    assert "edgeorch_home" in play.failures["n1"]


def test_a_look_changes_nothing_and_shows_no_secret(fleet):
    play = fleet.play("deploy", "--tags", "keys,config", "--check", "--diff", "-vv")
    assert play.changed == 0
    assert "PRIVATE KEY" not in play.output
    assert fleet.token() not in play.output
    assert (fleet.state / "tokens.toml").read_text().partition("sha256")[2][:70] not in play.output


def test_a_token_is_good_on_every_node_until_it_is_revoked(fleet):
    def accepted(name, token):
        return fleet.node(name).request("GET", "/api/v1/nodes", token=token)[0]

    made = fleet.play("tokens", "-e", "edgeorch_token=ci", "-e", "edgeorch_token_role=read")
    token = (fleet.state / "ci.token").read_text().strip()
    assert made.output.count(token) == 1
    assert (fleet.state / "ci.token").stat().st_mode & 0o777 == 0o600
    eventually(lambda: {accepted(n, token) for n in NAMES} == {200}, "the token is good", 10)
    assert token not in fleet.hosts.run("n1", "cat", "/etc/edgeorch/tokens.toml").stdout
    where = fleet.hosts.run("n1", "stat", "-c", "%U:%G %a", "/etc/edgeorch/tokens.toml").stdout
    assert where.strip() == "root:edgeorch 640"
    again = fleet.play("tokens", "-e", "edgeorch_token=ci", "-e", "edgeorch_token_role=read")
    assert again.changed == 0
    assert token not in again.output

    fleet.hosts.stop("n4")
    try:
        gone = fleet.play("tokens", "-e", "edgeorch_token=ci", "-e", "edgeorch_token_state=absent")
        assert "NOT DONE on n4" in gone.output
        eventually(lambda: {accepted(n, token) for n in NAMES[:3]} == {401}, "the token is refused", 10)
    finally:
        fleet.hosts.start("n4")
    eventually(lambda: accepted("n4", token) == 200, "n4 does not know it yet", 60)
    fleet.play("tokens")
    eventually(lambda: accepted("n4", token) == 401, "n4 knows it", 10)


def test_the_user_gets_a_working_command_line(fleet):
    settings = fleet.home / ".config" / "edgeorch" / "config.toml"
    assert settings.stat().st_mode & 0o777 == 0o600
    first = next(play for play in fleet.plays if "The first admin token" in play.output)
    assert first.output.count(fleet.token()) == 1
    for play in fleet.plays:
        assert play is first or fleet.token() not in play.output
    python = next((fleet.state.parent).glob("controller-*/bin/python"))
    asked = subprocess.run(
        [python, "-m", "edgeorch", "status", "--json"],
        env=fleet.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(asked.stdout)
