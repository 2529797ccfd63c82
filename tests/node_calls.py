"""What tests ask of a node, however they reach it."""

import json
import time


class NodeCalls:
    """Give it ``request(method, path, body=None, **headers)``, which returns (status, body as bytes)."""

    def get(self, path):
        status, body = self.request("GET", path)
        assert status == 200, body
        return json.loads(body)

    def submit(self, *argv, **fields):
        """Submit a native service; return the task."""
        spec = {"name": "test", "service": [{"driver": "native", "argv": list(argv)}], **fields}
        status, body = self.request("POST", "/api/v1/tasks", spec)
        assert status == 202, body
        return json.loads(body)

    def ended(self, task, seconds=60):
        """The task once it has ended; the node tells, nobody polls."""
        end = time.monotonic() + seconds
        while True:
            status, body = self.request("GET", f"/api/v1/tasks/{task['id']}", Prefer="wait=20")
            found = json.loads(body)
            if status == 200 and found["ended_at"]:
                return found
            assert time.monotonic() < end, found

    def sees(self):
        """Name to state of every node."""
        return {node["name"]: node["state"] for node in self.get("/api/v1/nodes")["nodes"]}
