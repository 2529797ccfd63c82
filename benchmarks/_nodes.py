"""Real node processes on loopback, with real keys and TLS, for benchmarks; all of it is gone at the end."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from edgeorch.identity import Authority
from edgeorch.rest.tokens import Token, hash_of, new_text, write_tokens

PATIENCE_S = 30.0
REQUEST = {
    "ServiceName": "bench",
    "ServiceInfo": [{"ExecutionType": "native", "ExecCmd": ["true"]}],
    "SelfSelection": "true",
}
# As it is where edgeorch was installed: its modules are compiled once, not at each start.
_ENVIRONMENT = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
TICKS = os.sysconf("SC_CLK_TCK")


class Node:
    """One node process and the folder that belongs to it.

    Args:
        fleet: the fleet.
        name: its name there.
        host: its address, on loopback.
    """

    def __init__(self, fleet, name, host):
        self.fleet, self.name, self.host = fleet, name, host
        self.folder = fleet.folder / name
        self.process = None
        self.environment = {}
        self.program = (sys.executable, "-m", "edgeorch")
        fleet.authority.issue(name, [host]).write(self.folder)
        (self.folder / "tokens.toml").write_bytes(fleet.tokens)

    @property
    def address(self):
        """Where its API listens."""
        return self.host, self.fleet.api

    def start(self):
        """Start it; seconds until it said READY=1."""
        seeds = [f"{node.host}:{self.fleet.wire}" for node in self.fleet.nodes if node is not self]
        config = self.folder / "edgeorch.toml"
        config.write_text(
            f'[node]\nstate_dir="{self.folder}/state"\nrun_dir="{self.folder}/run"\nlisten=["{self.host}"]\n'
            f'[api]\nport={self.fleet.api}\nanonymous_role="submit"\n[wire]\nport={self.fleet.wire}\n'
            f'[discovery]\nmdns=false\nseeds={json.dumps(seeds)}\n[policy]\nnative="any"\n'
        )
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with told, (self.folder / "log").open("ab") as log:
            path = self.folder / "notify"
            path.unlink(missing_ok=True)
            told.bind(str(path))
            told.settimeout(PATIENCE_S)
            begun = time.perf_counter()
            self.process = subprocess.Popen(
                [*self.program, "node", "--config", config],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**_ENVIRONMENT, **self.environment, "NOTIFY_SOCKET": str(path)},
            )
            try:
                while b"READY=1" not in told.recv(4096):
                    pass
            except TimeoutError:
                said = (self.folder / "log").read_text()
                raise SystemExit(f"{self.name} is not ready after {PATIENCE_S:g} s:\n{said}") from None
            return time.perf_counter() - begun

    def connect(self):
        """A keep-alive connection to its API."""
        return http.client.HTTPConnection(self.host, self.fleet.api, timeout=PATIENCE_S)

    def states(self):
        """State of every node that it knows, by name."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", "/api/v1/nodes")
            answer = json.loads(connection.getresponse().read())
        return {node["name"]: node["state"] for node in answer["nodes"]}

    def until_seen(self, *states, others):
        """Wait until it sees each of these nodes in one of these states."""
        end = time.monotonic() + PATIENCE_S
        while not all(self.states().get(node.name) in states for node in others):
            if time.monotonic() > end:
                raise SystemExit(f"{self.name} sees {self.states()} for {PATIENCE_S:g} s")
            time.sleep(0.05)

    def runner(self):
        """Process id of its runner, a child with the node's folder on its command line."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
                if b"edgeorch.runner" in line and f"{self.folder}/".encode() in line:
                    return int(entry.name)
        raise SystemExit(f"{self.name} has no runner; its log: {self.folder}/log")

    def kill_host(self):
        """As if its machine had lost power."""
        runner = self.runner()
        self.process.kill()
        self.process.wait()
        os.kill(runner, signal.SIGKILL)

    def stop(self):
        """Stop it in order, with its runner; safe to repeat."""
        if self.process is None or self.process.poll() is not None:
            return
        runner = self.runner()
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(runner, signal.SIGTERM)  # a node's stop leaves its services running


class Fleet:
    """Nodes that know each other, on one pair of ports and addresses of their own.

    Args:
        folder: for keys, state and logs.
        names: of the nodes.
        first: last number of the first node's address.
    """

    def __init__(self, folder, *names, first=1):
        self.folder = folder
        self.authority = Authority.create(folder / "ca", "bench")
        self.token = new_text()
        token = Token(name="bench", role="submit", sha256=hash_of(self.token), created=datetime.now(UTC))
        self.tokens = write_tokens([token])
        base = 10 + os.getpid() % 200
        hosts = [f"127.{base}.1.{number}" for number in range(first, first + len(names))]
        self.api, self.wire = _free_port(hosts), _free_port(hosts)
        self.nodes = [Node(self, name, host) for name, host in zip(names, hosts, strict=True)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for node in self.nodes:
            node.stop()

    def start(self):
        """Start all; returns when each sees all others alive."""
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.until_seen("alive", others=[other for other in self.nodes if other is not node])
        return self.nodes


def post(connection):
    """One request of the original API on an open connection: (seconds to the answer, its Message)."""
    body = json.dumps(REQUEST)
    begun = time.perf_counter()
    connection.request("POST", "/api/v1/orchestration/services", body, {"Content-Type": "application/json"})
    answer = connection.getresponse().read()
    took = time.perf_counter() - begun
    return took, json.loads(answer).get("Message", "")


def resident_mb(pid):
    """Resident memory of a process in MB (10^6 bytes)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_s(pid):
    """CPU seconds that a process has used, with its threads that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def precise_cpu_s(pid):
    """CPU seconds of the threads that a process has now, to the nanosecond."""
    return sum(threads_cpu_s(pid).values())


def threads_cpu_s(pid):
    """The same by the threads' names."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        found[name] = found.get(name, 0.0) + int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def _free_port(hosts):
    while True:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in hosts]
            sockets[0].bind((hosts[0], 0))
            port = sockets[0].getsockname()[1]
            try:
                for one, host in zip(sockets[1:], hosts[1:], strict=True):
                    one.bind((host, port))
            except OSError:
                continue
            return port
