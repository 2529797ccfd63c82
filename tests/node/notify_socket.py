"""The end of ``NOTIFY_SOCKET`` that systemd has."""

import socket
import time

from real_fleet import PATIENCE_S


class Systemd:
    """The other end of ``NOTIFY_SOCKET``."""

    def __init__(self, path):
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.bind(str(path))
        self.heard = []
        self.lines = []

    def until(self, *starts):
        """The lines that have come, up to the one after which each of these has been heard."""
        told, end = [], time.monotonic() + PATIENCE_S
        while not all(any(line.startswith(start) for line in told) for start in starts):
            assert time.monotonic() < end, (starts, told)
            if not self.heard:
                self.heard = self.socket.recv(65_536).decode().splitlines()
            told.append(self.heard.pop(0))
            self.lines.append(told[-1])
        return told
