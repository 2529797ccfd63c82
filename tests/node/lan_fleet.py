"""Real nodes in network namespaces on one bridge: machines on a LAN, on one machine. Needs root."""

import contextlib
import ctypes
import http.client
import secrets
import socket
import ssl
import subprocess
import threading
from pathlib import Path

from real_fleet import PATIENCE_S, RealFleet, RealNode

from edgeorch.identity import Authority

API = 56001
CLONE_NEWNET = 0x40000000


class Lan:
    """A bridge in a namespace of its own, and as many namespaces as asked for with ``eth0`` on it."""

    def __init__(self, machines):
        self._name = f"el{secrets.token_hex(3)}"
        self.spaces = [f"{self._name}-{number}" for number in range(1, machines + 1)]
        self._made = []
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self):
        for space in (self._name, *self.spaces):
            ip("netns", "add", space)
            self._made.append(space)
            ip("-n", space, "link", "set", "lo", "up")
        ip("-n", self._name, "link", "add", "br0", "type", "bridge")
        ip("-n", self._name, "link", "set", "br0", "up")
        for number, space in enumerate(self.spaces, 1):
            peer = ("peer", "name", f"p{number}", "netns", self._name)
            ip("-n", space, "link", "add", "eth0", "type", "veth", *peer)
            ip("-n", self._name, "link", "set", f"p{number}", "master", "br0", "up")
            ip("-n", space, "addr", "add", f"10.78.0.{number}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")

    def plug(self, number, state):
        """Pull the cable of a machine (``down``) or put it back (``up``); its own interface stays."""
        ip("-n", self._name, "link", "set", f"p{number}", state)

    def close(self):
        for space in self._made:
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True, timeout=20)


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


def connected(space, address):
    """A TCP connection made inside a namespace: a socket stays where its thread was."""
    made = []

    def connect():
        with Path("/run/netns", space).open("rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                made.append(OSError(ctypes.get_errno(), "setns"))
                return
        try:
            made.append(socket.create_connection(address, timeout=PATIENCE_S))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


class LanNode(RealNode):
    """One node in a namespace; its REST port is asked over the namespace's loopback."""

    def __init__(self, fleet, name, space, host):
        super().__init__(fleet, name, host)
        self.space = space

    def write_config(self, extra=""):
        (self.folder / "edgeorch.toml").write_text(
            f'[node]\nstate_dir="{self.folder}/state"\nrun_dir="{self.folder}/run"\n'
            f'[api]\nanonymous_role="admin"\n[executor]\ndrivers=["native"]\n[policy]\nnative="any"\n{extra}'
        )

    def command(self):
        return ["ip", "netns", "exec", self.space, *super().command()]

    def connection(self):
        made = http.client.HTTPConnection("127.0.0.1", API)
        made.sock = connected(self.space, ("127.0.0.1", API))
        return made

    def asked_from(self, space, *, tls=False, **headers):
        """Status and body of ``GET /api/v1/nodes`` on its LAN address from another machine."""
        with connected(space, (self.host, API)) as sock:
            made = http.client.HTTPConnection(self.host, API)
            made.sock = sock
            if tls:
                context = ssl.create_default_context(cafile=str(self.folder / "pki" / "ca.pem"))
                made.sock = context.wrap_socket(sock, server_hostname=self.host)
            with contextlib.closing(made):
                made.request("GET", "/api/v1/nodes", headers=headers)
                answer = made.getresponse()
                return answer.status, answer.read()


class LanFleet(RealFleet):
    """One fleet's nodes in the namespaces that it is given; nothing but mDNS tells them of each other."""

    def __init__(self, folder, spaces):
        """``spaces``: node name to (namespace, address)."""
        self.folder = folder
        self.authority = Authority.create(folder / "ca", "home")
        self.nodes = {name: LanNode(self, name, *where) for name, where in spaces.items()}
