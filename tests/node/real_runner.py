"""A runner process of its own and a plain blocking client."""

import socket
import subprocess
import sys

from edgeorch.runner import protocol


class Runner:
    """A runner and a plain blocking client."""

    def __init__(self, folder, *options, program=("-m", "edgeorch.runner")):
        self.folder = folder
        self.path = folder / "runner.sock"
        argv = [sys.executable, *program, "--socket", str(self.path)]
        argv += ["--work-dir", str(folder / "tasks"), "--grace-s", "0.2", *options]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.said = self.process.stdout.readline()

    def connect(self):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(20)
        sock.connect(str(self.path))
        return Client(sock)

    def end(self):
        self.process.terminate()
        self.process.wait(20)
        errors = self.process.stderr.read()
        self.process.stdout.close()
        self.process.stderr.close()
        return errors


class Client:
    def __init__(self, sock):
        self.sock = sock
        self.inbox = protocol.replies()
        self.waiting = []

    def send(self, message):
        self.sock.sendall(protocol.encode(message))

    def receive(self):
        while not self.waiting:
            data = self.sock.recv(65536)
            if not data:
                return None
            self.waiting += self.inbox.feed(data)
        return self.waiting.pop(0)
