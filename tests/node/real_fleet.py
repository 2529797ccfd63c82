"""A fleet of real node processes on loopback, with real keys and TLS; all of it is gone at the end."""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from node_calls import NodeCalls

from edgeorch.identity import Authority

PATIENCE_S = 30.0


def free_port(hosts):
    """A port that is free on all these addresses; never one that the kernel may give to whoever dials."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for host in hosts:
                stack.enter_context(socket.socket()).bind((host, port))
            return port


def eventually(ask, what):
    """The first true answer; asked again every 20 ms for half a minute."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if answer := ask():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"never happened: {what}")


class RealNode(NodeCalls):
    """One node: its folder outlives its processes."""

    def __init__(self, fleet, name, host):
        self.fleet, self.name, self.host = fleet, name, host
        self.folder = fleet.folder / name
        self.run_dir = self.folder / "run"
        self.process = None
        fleet.authority.issue(name, [host]).write(self.folder)
        self.id = ""

    def issue_at(self, days, **how):
        """A certificate for its name as it would have been issued this many days from now."""
        authority = Authority.open(self.fleet.folder / "ca", wall=lambda: time.time() + days * 86_400)
        node_id = (self.folder / "node_id").read_text().strip()
        authority.issue(self.name, [self.host], node_id=node_id, **how).write(self.folder)

    def write_config(self, extra=""):
        seeds = [f"{node.host}:{self.fleet.wire}" for node in self.fleet.nodes.values()]
        (self.folder / "edgeorch.toml").write_text(
            f'[node]\nstate_dir="{self.folder}/state"\nrun_dir="{self.run_dir}"\nlisten=["{self.host}"]\n'
            f'[api]\nport={self.fleet.api}\nanonymous_role="admin"\n[wire]\nport={self.fleet.wire}\n'
            f"[discovery]\nmdns=false\nseeds={json.dumps(seeds)}\n"
            f'[policy]\nnative="any"\n{extra}'
        )

    def start(self, extra="", env=None):
        self.write_config(extra)
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(env or {})},
            )
        eventually(self.serves, f"{self.name} serves; its log: {self.folder}/log")
        self.id = self.get("/api/v1/nodes/self")["id"]
        return self

    def command(self):
        return [sys.executable, "-m", "edgeorch", "node", "--config", str(self.folder / "edgeorch.toml")]

    def connection(self):
        """To its REST port."""
        return http.client.HTTPConnection(self.host, self.fleet.api, timeout=PATIENCE_S)

    def serves(self):
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.request("GET", "/healthz")[0] == 200
        return False

    def log(self):
        return (self.folder / "log").read_text()

    def kill(self):
        """As if the power of the daemon had gone; its runner lives on."""
        self.process.kill()
        self.process.wait()

    def kill_host(self):
        """The daemon and its runner, with everything that runs there."""
        self.kill()
        self.kill_runner()

    def kill_runner(self):
        for pid in runners(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def reload(self):
        self.process.send_signal(signal.SIGHUP)

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            return self.process.wait(PATIENCE_S)
        return None

    def request(self, method, path, body=None, **headers):
        with contextlib.closing(self.connection()) as connection:
            names = {"Content-Type": "application/json"} if body is not None else {}
            text = json.dumps(body) if isinstance(body, dict | list) else body
            connection.request(method, path, text, names | headers)
            answer = connection.getresponse()
            return answer.status, answer.read()


class RealFleet:
    """Nodes by name, all on one pair of ports and addresses of their own."""

    def __init__(self, folder: Path, *names: str):
        self.folder = folder
        self.authority = Authority.create(folder / "ca", "test")
        base = 10 + os.getpid() % 200
        hosts = [f"127.{base}.0.{number}" for number in range(1, len(names) + 1)]
        self.api, self.wire = free_port(hosts), free_port(hosts)
        self.nodes = {}
        for name, host in zip(names, hosts, strict=True):
            self.nodes[name] = RealNode(self, name, host)

    def start(self, *names):
        started = [self.nodes[name].start() for name in names or self.nodes]
        for node in started:
            self.wait_seen(node, *(other.name for other in started))
        return started

    def wait_seen(self, node, *names, state="alive"):
        eventually(
            lambda: all(node.sees().get(name) == state for name in names), f"{node.name} sees {names} {state}"
        )

    def close(self):
        for node in self.nodes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.stop()
            if node.process is not None and node.process.poll() is None:
                node.kill()
            node.kill_runner()


def runners(folder):
    """Ids of the runner processes of a node, found by its folder on their command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if b"edgeorch.runner" in line and str(folder).encode() in line:
                    yield int(entry.name)
