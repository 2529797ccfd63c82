"""The node of the host that a module runs on, asked over loopback."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time

from ansible.module_utils.edgeorch_unit import show

try:
    import tomllib
except ImportError:
    tomllib = None

NODE = "edgeorch.service"
REQUEST_S = 5
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  read, not bound
PEM_END = "-----END CERTIFICATE-----"
LOOK_S = 0.3
"""A node's state has no event that a module could wait for."""
IDLE = "draining: nothing runs"
"""How the line that the node tells systemd begins, perhaps after bad news, once a drained node is idle."""


class LocalNode:
    """Asks with TLS, and sends the token only after the node has shown its own certificate.

    Raises:
        OSError: there are no keys on this host.
    """

    def __init__(self, folder, port, token):
        self.port = port
        self.token = token
        with open(os.path.join(folder, "node_id"), encoding="ascii") as file:
            self.node_id = file.read().strip()
        settings = read_settings(folder)
        bound = [one for one in settings.get("node", {}).get("listen", ()) if one not in EVERYWHERE]
        self.address = bound[0] if bound else "127.0.0.1"
        self.tls = ssl.create_default_context(cafile=os.path.join(folder, "pki", "ca.pem"))
        # The name that counts is the id in the certificate, which is compared below.
        self.tls.check_hostname = False
        self.certificate = b""
        if settings.get("api", {}).get("tls_cert"):
            # A certificate of somebody else's CA: it has to be the very one that the settings name.
            self.tls.verify_mode = ssl.CERT_NONE
            with open(os.path.join(folder, settings["api"]["tls_cert"]), encoding="ascii") as file:
                first = file.read().partition(PEM_END)[0]
            self.certificate = ssl.PEM_cert_to_DER_cert(first[first.index("-----BEGIN") :] + PEM_END)

    def check(self, sock):
        """Make sure that this host's node is at the other end.

        Raises:
            OSError: it is another node's certificate.
        """
        if self.certificate:
            if sock.getpeercert(True) != self.certificate:
                raise OSError("port %d does not show the certificate of api.tls_cert" % self.port)
            return
        names = [name for kind, name in sock.getpeercert().get("subjectAltName", ()) if kind == "URI"]
        mine = "/node/" + self.node_id
        if not any(name.startswith("edgeorch://") and name.endswith(mine) for name in names):
            raise OSError("port %d has another node, %s" % (self.port, ", ".join(names)))

    def call(self, method, path):
        """Status and JSON of a route.

        Raises:
            OSError: no answer, or another node's or program's.
        """
        link = http.client.HTTPSConnection(self.address, self.port, timeout=REQUEST_S, context=self.tls)
        try:
            link.connect()
            self.check(link.sock)
            link.request(method, path, headers={"Authorization": "Bearer " + self.token})
            answer = link.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        except (http.client.HTTPException, ValueError) as error:
            raise OSError("the answer of port %d is not one of edgeorch: %s" % (self.port, error)) from None
        finally:
            link.close()

    def get(self, path):
        """The JSON of a route.

        Raises:
            OSError: no answer, or a refusal.
        """
        return good(*self.call("GET", path))

    def change(self, action):
        """``drain``, ``cordon`` or ``resume`` this node; its document.

        Raises:
            OSError: no answer, or a refusal.
        """
        return good(*self.call("POST", "/api/v1/nodes/self/" + action))


def read_settings(folder):
    """The node's settings; empty where this Python cannot read TOML, and so the defaults hold."""
    if tomllib is None:
        return {}
    try:
        with open(os.path.join(folder, "edgeorch.toml"), "rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError):
        return {}


def good(status, answer):
    """The answer, unless it is a problem."""
    if status == 401:
        raise OSError("the node does not know the token of this controller: run deploy first")
    if status >= 300:
        raise OSError(answer.get("detail") or "the node answers %d" % status)
    return answer


def wait_idle(module, wait_s):
    """Wait until nothing runs on a node that drains; what it says in the end, and whether nothing runs."""
    end = time.monotonic() + wait_s
    while True:
        said = show(module, [NODE], "StatusText")[NODE]["StatusText"]
        idle = any(part.startswith(IDLE) for part in said.split("; "))
        if idle or time.monotonic() > end:
            return said, idle
        time.sleep(LOOK_S)
