"""What is wrong with a host is told in a sentence, and the hosts beside it go on."""

import pytest

TAGS = ("--tags", "preflight")
# A Python of a host whose clock is late: only what it starts sees that time.
LATE = """\
#!/bin/sh
export LD_PRELOAD=$(ls /usr/lib/*/faketime/libfaketime.so.1) FAKETIME=-1h
exec python3 "$@"
"""
# Its sleep is a process that holds the port, whatever sends it a signal.
SQUATTER = "systemd-run --quiet --unit squatter python3 -c '{}'"
LISTEN = 'import socket, time; s = socket.socket(); s.bind(("", 56001)); s.listen(); time.sleep(900)'


def sentences(play, host):
    return [line.removeprefix(f"{host}: ") for line in play.failures[host].splitlines()]


@pytest.fixture
def three(new_hosts):
    return new_hosts(3)


def test_each_obstacle_is_a_sentence_and_the_next_run_completes(three):
    hosts = three.hosts
    # n2 is a careless copy of n1.
    hosts.run("n2", f"echo {hosts.run('n1', 'cat /etc/machine-id').stdout.strip()} >/etc/machine-id")
    hosts.run("n2", SQUATTER.format(LISTEN))
    hosts.run("n2", "until ss -Hltn sport = :56001 | grep -q .; do :; done")
    hosts.run("n2", "mkdir -p /opt/edgeorch && mount -t tmpfs -o size=60m none /opt/edgeorch")
    hosts.run("n3", "mkdir -p /var/lib/edgeorch && mount -t tmpfs none /var/lib/edgeorch")
    hosts.run("n3", "cat >/usr/local/bin/late && chmod +x /usr/local/bin/late", stdin=LATE)
    inventory = three.hosts.folder / "late.yml"
    text = hosts.inventory.read_text()
    address = f"ansible_host: {hosts['n3'].address}"
    assert text.count(address) == 1
    late = f"ansible_python_interpreter: /usr/local/bin/late\n      {address}"
    inventory.write_text(text.replace(address, late))

    play = three.play("deploy", *TAGS, inventory=inventory, check=False)

    assert play.returncode != 0
    assert play.recap["n1"]["failed"] == 0
    said = sentences(play, "n2")
    assert len(said) == 3
    assert "/opt/edgeorch has 60 MB free and edgeorch needs 200 there" in said[1]
    assert said[0].startswith("port 56001 is taken by python3 (process ")
    assert said[0].endswith("stop it, or set another api.port in edgeorch_settings")
    assert "it has the machine id " in said[2]
    assert " of n1 (a copied disk?): run `rm /etc/machine-id && systemd-machine-id-setup` there" in said[2]
    said = sentences(play, "n3")
    assert len(said) == 2
    assert "its clock is 60 min behind the controller's" in said[0]
    assert "/var/lib/edgeorch is on tmpfs" in said[1]

    hosts.run("n2", "systemctl stop squatter && umount /opt/edgeorch && rm /etc/machine-id")
    hosts.run("n2", "systemd-machine-id-setup")
    three.play("deploy", *TAGS, "-e", "edgeorch_volatile=true")


def test_who_is_asked_and_what_is_there(new_hosts):
    controller = new_hosts(2)
    hosts = controller.hosts
    hosts.run("n1", "mkdir -p /etc/edgeorch/pki && cat >/etc/edgeorch/pki/ca.pem", stdin=OTHER_CA)
    hosts.run("n2", "hostname n1")

    nowhere = ("-e", f"ansible_host={hosts.subnet[200]}")
    play = controller.play("deploy", "--tags", "preflight", *nowhere, check=False)
    for name in ("n1", "n2"):
        assert play.failures[name].startswith(f"{name} cannot be reached: ")
        assert str(hosts.subnet[200]) in play.failures[name]

    careful = ("-e", "ansible_user=pat", "-e", "ansible_become_password=wrong")
    play = controller.play("deploy", "--tags", "preflight,keys", *careful, check=False)
    for name in ("n1", "n2"):
        (said,) = sentences(play, name)
        assert said.startswith("sudo refuses the user there (")
        assert said.endswith("give its password by --ask-become-pass, or let the user use sudo")

    play = controller.play("deploy", "--tags", "preflight,keys", "-e", "edgeorch_python=/opt/py", check=False)
    assert sentences(play, "n1")[0] == (
        "edgeorch_python is /opt/py, and there is no Python that runs: correct it, or install it"
    )
    assert "it has a certificate of another CA in /etc/edgeorch/pki" in sentences(play, "n1")[1]
    assert "it has the host name n1 of n1 (a copied disk?): give it one of its own" in play.failures["n2"]

    # What was seen in this play counts in one that has only the copy.
    hosts.run("n1", "rm -r /etc/edgeorch")
    controller.play("deploy", "--tags", "preflight", "--limit", "n1")
    play = controller.play("deploy", "--tags", "preflight", "--limit", "n2", check=False)
    assert "it has the host name n1 of n1" in sentences(play, "n2")[0]
    hosts.run("n2", "hostname n2")
    controller.play("deploy", "--tags", "preflight", "--limit", "n2")


OTHER_CA = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
