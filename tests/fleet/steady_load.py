"""A client that asks every node of a fleet in turn, at a steady rate, and keeps what went wrong."""

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

RATE = 5
"""Requests a second."""


class SteadyLoad:
    """``with SteadyLoad(controller) as load: …``; afterwards ``load.sent`` and ``load.failures``.

    Of three requests one reads the fleet, one runs a service and waits for its end, and one reads a task
    through another node than the one that has it. Each opens a connection of its own and trusts the CA file
    of the controller as it is at that time.

    Args:
        controller: has the nodes.
        names: of the nodes to ask.
    """

    def __init__(self, controller, names):
        self.sent = 0
        self.failures = []
        self._nodes = [controller.node(name) for name in names]
        self._task = None
        self._over = threading.Event()
        self._clock = threading.Thread(target=self._run)
        self._pool = ThreadPoolExecutor(4 * RATE)

    def __enter__(self):
        self._clock.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._clock.join()
        self._pool.shutdown()

    def _run(self):
        start = time.monotonic()
        while not self._over.wait(max(0.0, start + self.sent / RATE - time.monotonic())):
            self._pool.submit(self._ask, self.sent)
            self.sent += 1

    def _ask(self, number):
        node = self._nodes[number % len(self._nodes)]
        began = time.monotonic()
        try:
            wrong = [self._read, self._run_service, self._read_elsewhere][number % 3](node)
        except (OSError, http.client.HTTPException, ValueError) as error:
            wrong = repr(error)
        if wrong:
            took = time.monotonic() - began
            self.failures.append(f"request {number} to {node.name} after {took:.1f} s: {wrong}")

    def _read(self, node):
        status, body = node.request("GET", "/api/v1/nodes")
        return "" if status == 200 else f"{status} {body!r}"

    def _run_service(self, node):
        spec = {"name": "load", "service": [{"driver": "native", "argv": ["/bin/true"]}]}
        status, body = node.request("POST", "/api/v1/tasks", spec, Prefer="wait=20")
        answer = json.loads(body)
        if status != 200 or answer["state"] != "succeeded":
            return f"{status} {answer}"
        self._task = answer["id"]
        return ""

    def _read_elsewhere(self, node):
        if self._task is None:
            return ""
        status, body = node.request("GET", f"/api/v1/tasks/{self._task}")
        return "" if status == 200 else f"{status} {body!r}"
