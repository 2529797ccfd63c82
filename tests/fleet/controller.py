"""The machine that has the inventory: runs playbooks as a user does, and asks the nodes that they made."""

import contextlib
import dataclasses
import http.client
import json
import os
import re
import shlex
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

from node_calls import NodeCalls

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
PLAY_S = 600
ANSWER_S = 30
API_PORT = 56001
_RECAP = re.compile(r"^(\S+)\s+: (ok=\d+.*)$", re.MULTILINE)
_FATAL = re.compile(r"^(?:fatal|failed): \[([^\]\s]+).*? => (\{.*\})$", re.MULTILINE)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# What this machine needs to reach a package index; nothing else of the environment gets in.
_PASSED_ON = re.compile(
    r"PIP_\w+|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|(https?|no|all)_proxy|TMPDIR", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Play:
    """What one run of a playbook gave.

    Attributes:
        returncode: 0 when all went well.
        output: all that it said.
        seconds: how long it took.
        recap: host to ``{"ok": 3, "changed": 1, "unreachable": 0, "failed": 0, …}``.
    """

    returncode: int
    output: str
    seconds: float
    recap: dict[str, dict[str, int]]

    @property
    def changed(self):
        """How many tasks changed something, on all hosts and the controller."""
        return sum(line["changed"] for line in self.recap.values())

    @property
    def tasks(self):
        """How many tasks were run on at least one host."""
        return self.output.count("\nTASK [") + self.output.count("\nRUNNING HANDLER [")

    @property
    def failures(self):
        """Host to the last sentence with which it failed or could not be reached."""
        return {host: json.loads(said).get("msg", said) for host, said in _FATAL.findall(self.output)}


class Controller:
    """Runs the playbooks of this checkout from a folder that is not in it.

    Args:
        hosts: the machines; ``hosts.folder`` also holds the controller's own files.
        fleet: the fleet's name.
        inventory: an inventory of its own; that of all hosts by default.

    Attributes:
        plays: every ``Play`` so far, in order.
    """

    def __init__(self, hosts, fleet="home", inventory=None):
        self.hosts, self.fleet = hosts, fleet
        self.inventory = inventory or hosts.inventory
        self.folder = hosts.folder / "controller"
        self.folder.mkdir(exist_ok=True)
        self.home = hosts.folder / "home"
        self.home.mkdir(exist_ok=True)
        self.plays = []

    @property
    def state(self):
        """The fleet's folder with CA and admin token."""
        return self.folder / ".edgeorch" / self.fleet

    def play(self, name, *arguments, check=True, inventory=None, env=None):
        """Run ``ansible-playbook -i INVENTORY playbooks/NAME.yml ARGUMENTS…``.

        Args:
            name: a playbook of ours by name, or the path of another one.
            arguments: such as ``--limit n5`` or ``-e edgeorch_strict=true``, each word its own.
            check: whether a failed play fails the test, with all its output.
            inventory: another inventory for this run.
            env: further environment.
        """
        path = name if "/" in str(name) else PLAYBOOKS / f"{name}.yml"
        words = ("ansible-playbook", str(path), *arguments)
        return self.command(*words, check=check, inventory=inventory, env=env)

    def command(self, program, *arguments, check=True, inventory=None, env=None):
        """Run a program of the Ansible beside this Python, such as ``ansible-inventory``."""
        found = str(Path(sys.executable).with_name(program))
        argv = [found, "-i", str(inventory or self.inventory), *arguments]
        start = time.monotonic()
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.folder,
                env=self.environment() | (env or {}),
                timeout=PLAY_S,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            so_far = (late.stdout or b"").decode(errors="replace")
            raise AssertionError(f"{shlex.join(argv)} hangs:\n{so_far}") from None
        output = _COLOURS.sub("", done.stdout)
        play = Play(done.returncode, output, time.monotonic() - start, _recap(output))
        self.plays.append(play)
        if check and done.returncode != 0:
            raise AssertionError(f"{shlex.join(argv)} ended with {done.returncode}:\n{output}")
        return play

    def take_over(self, other):
        """Have what a deployment by ``other`` has made: packed archives here, programs on the hosts.

        Packing and installing is most of a deployment from nothing; tests of what follows need not repeat it.
        """
        archives, programs = other.state / "dist", other.hosts.folder / "programs.tar"
        self.state.parent.mkdir(mode=0o700, exist_ok=True)
        self.state.mkdir(mode=0o700, exist_ok=True)
        for made, place in (
            (archives, self.state),
            (next(other.state.parent.glob("controller-*")), self.state.parent),
        ):
            if not (place / made.name).exists():
                subprocess.run(["cp", "-a", "--link", made, place], check=True)
        if not programs.exists():
            other.hosts.fetch("n1", "/opt/edgeorch", programs)
        for name in self.hosts.by_name:
            if self.hosts.run(name, "test -d /opt/edgeorch", check=False).returncode:
                self.hosts.unpack(name, programs, "/opt")

    def environment(self):
        """A user's, without what the test run has in its own."""
        own = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
        config = Path("~/.config/pip/pip.conf").expanduser()
        if config.exists():
            own.setdefault("PIP_CONFIG_FILE", str(config))
        own.setdefault("PIP_CACHE_DIR", str(Path("~/.cache/pip").expanduser()))
        return own | {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
        }

    def token(self):
        """The admin token that the play left here."""
        return (self.state / "admin.token").read_text().strip()

    def node(self, name):
        """The node on a host, asked over its REST API from here."""
        return FleetNode(self, name)


class FleetNode(NodeCalls):
    """A node on a host: what its REST API says, with the fleet's CA and the admin token."""

    def __init__(self, controller, name):
        self.name = name
        self._controller = controller

    @property
    def hosts(self):
        return self._controller.hosts

    @property
    def address(self):
        return self.hosts[self.name].address

    def request(self, method, path, body=None, *, token=None, **headers):
        """Return (status, body as bytes)."""
        connection = _Connection(self.name, self.address, self._controller.state / "ca.pem")
        with contextlib.closing(connection):
            names = {"Authorization": f"Bearer {token or self._controller.token()}"}
            if body is not None:
                names["Content-Type"] = "application/json"
            connection.request(method, path, None if body is None else json.dumps(body), names | headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def curl(self, on, path, *arguments):
        """Ask this node from another host by curl; return the finished process."""
        self.hosts.copy(on, self._controller.state / "ca.pem", "/root/ca.pem")
        header = f"Authorization: Bearer {self._controller.token()}"
        url = f"https://{self.address}:{API_PORT}{path}"
        argv = ("curl", "-sS", "--cacert", "/root/ca.pem", "-H", header, *arguments, url)
        return self.hosts.run(on, *argv, check=False)


class _Connection(http.client.HTTPSConnection):
    """To a node by its name, wherever it is now: a node that has moved keeps its certificate."""

    def __init__(self, name, address, ca):
        self._place, self._tls = (address, API_PORT), ssl.create_default_context(cafile=ca)
        super().__init__(name, API_PORT, timeout=ANSWER_S, context=self._tls)

    def connect(self):
        plain = socket.create_connection(self._place, timeout=ANSWER_S)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


def eventually(ask, what, seconds=ANSWER_S):
    """The first true answer; asked again every 50 ms, also where what is looked up is not there yet."""
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            if answer := ask():
                return answer
        except (OSError, http.client.HTTPException, LookupError) as error:
            last = repr(error)
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what} ({last or 'no error'})")


def _recap(output):
    _, _, recap = output.rpartition("PLAY RECAP")
    return {
        host: {key: int(number) for key, number in re.findall(r"(\w+)=(\d+)", counts)}
        for host, counts in _RECAP.findall(recap)
    }
