"""What systemd is told and what it gives: readiness, the status line, the watchdog, the journal.

Protocols: sd_notify(3) and systemd.journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).
"""

import errno
import functools
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import trio

JOURNAL = Path("/run/systemd/journal/socket")
JOURNAL_WAIT_S = 0.1
"""How long a log line may hold up the node while the journal is busy."""
STUCK_S = 1.0
"""How long nothing is written after that."""
SHORT = 32_768
"""Bytes of a message whose record is too large for one datagram."""
STATUS_EVERY_S = 1.0


class Notify:
    """The notification socket; does nothing where the node was not started by systemd.

    Args:
        env: has ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC`` under systemd.
    """

    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        self._address = env.get("NOTIFY_SOCKET", "")
        watchdog_pid = env.get("WATCHDOG_PID", "")
        mine = not watchdog_pid or watchdog_pid == str(os.getpid())
        usec = env.get("WATCHDOG_USEC", "0") if mine else "0"
        self.watchdog_s = int(usec) / 1e6 if usec.isdigit() else 0.0
        self._status = ""

    def send(self, *lines: str) -> bool:
        """Send assignments such as ``READY=1``; a systemd that does not listen changes nothing for us."""
        if not self._address:
            return False
        text = "\n".join(line.replace("\n", " ") for line in lines)
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.sendto(text.encode("utf-8", "replace"), socket.MSG_DONTWAIT, address)
            except OSError:
                return False
        return True

    def ready(self) -> None:
        """The node serves."""
        self.send("READY=1")

    def reloading(self) -> None:
        """The settings are being read; ``ready`` says that this is over."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """The node goes down."""
        self.send("STOPPING=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """The line that ``systemctl status`` shows; sent only when it changes."""
        if text != self._status and self.send(f"STATUS={text}"):
            self._status = text

    async def run(
        self, status: Callable[[], str], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Keep the status line fresh and pet the watchdog, from a turn of the node's own loop."""
        task_status.started()
        if not self._address:
            await trio.sleep_forever()
        pet_s = self.watchdog_s / 4 if self.watchdog_s else math.inf
        due = trio.current_time() if self.watchdog_s else math.inf
        while True:
            self.status(status())
            if trio.current_time() >= due:
                self.send("WATCHDOG=1")
                due = trio.current_time() + pet_s
            # Back here only after a turn of the loop, which is what the watchdog is told of.
            await trio.sleep(min(STATUS_EVERY_S, pet_s))


class Journal:
    """Writes log records with their fields to journald."""

    def __init__(self, path: Path = JOURNAL) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(JOURNAL_WAIT_S)
        self._socket.connect(str(path))
        self._stuck_until = -math.inf

    def write(self, priority: int, message: str, fields: Mapping[str, object]) -> None:
        """One record; ``fields`` become ``EDGEORCH_NAME``, so that journalctl can select by them."""
        record = {"MESSAGE": message, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": "edgeorch"}
        more = {_key(name): str(value) for name, value in fields.items()}
        if time.monotonic() < self._stuck_until:
            return
        try:
            self._send(record | more)
        except TimeoutError:
            # One wait a second: a burst of lines must not hold up the node line by line.
            self._stuck_until = time.monotonic() + STUCK_S
        except OSError as error:
            # A journal that cannot take it (restarting, stuck) must not stop the node.
            if error.errno == errno.EMSGSIZE:
                with suppress(OSError):
                    self._send(record | {"MESSAGE": message[:SHORT]})

    def _send(self, record: Mapping[str, str]) -> None:
        self._socket.send(b"".join(_field(key, value) for key, value in record.items()))

    @staticmethod
    def here(env: Mapping[str, str] = os.environ) -> bool:
        """Whether stderr goes to the journal: systemd says so by device and inode."""
        try:
            device, _, inode = env.get("JOURNAL_STREAM", "").partition(":")
            stat = os.fstat(2)
            return (int(device), int(inode)) == (stat.st_dev, stat.st_ino) and JOURNAL.exists()
        except (ValueError, OSError):
            return False


@functools.lru_cache(maxsize=256)
def _key(name: str) -> str:
    """The journal drops fields whose names have other characters, or more than 64 of them."""
    letters = (char if char.isascii() and char.isalnum() else "_" for char in name.upper())
    return f"EDGEORCH_{''.join(letters)}"[:64]


def _field(key: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    if b"\n" in data:
        return key.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return key.encode() + b"=" + data + b"\n"
