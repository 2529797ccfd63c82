"""Real nodes get new keys, a new CA and a revocation while requests come in all the time."""

import contextlib
import http.client
import json
import ssl
import threading
import time

import pytest
from real_fleet import PATIENCE_S, RealFleet, eventually

from edgeorch.identity.folder import NodeFolder
from edgeorch.identity.signing import Request

AT_A_TIME = 3


class Load:
    """Asks every node in turn, over TLS and with what a client has as ``--cacert``, until the block ends.

    Each round submits a task to one node that must run on the next one, waits for its end, and reads the
    fleet's nodes and tasks, so every link is used.
    """

    def __init__(self, fleet):
        self.fleet = fleet
        self.nodes = list(fleet.nodes.values())
        self.failures, self.done = [], 0
        self.trust()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(AT_A_TIME)]

    def trust(self):
        """The client is given the bundle, as the nodes are."""
        self.context = ssl.create_default_context(cadata=self.fleet.authority.ca_pem.decode())

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self, turn):
        while not self._ended.wait(0.02):
            node = self.nodes[turn % len(self.nodes)]
            turn += 1
            other = self.nodes[turn % len(self.nodes)]
            spec = {
                "name": "load",
                "service": [{"driver": "native", "argv": ["true"]}],
                "placement": {"node": other.name},
            }
            task = self._ask(node, "POST", "/api/v1/tasks", spec, 200)
            if task and (task["state"], len(task["attempts"])) != ("succeeded", 1):
                self.failures.append((node.name, task))
            seen = self._ask(other, "GET", "/api/v1/nodes", None, 200)
            if seen and any(one["state"] != "alive" for one in seen["nodes"]):
                self.failures.append((other.name, [(one["name"], one["state"]) for one in seen["nodes"]]))
            listed = self._ask(other, "GET", "/api/v1/tasks?limit=5", None, 200)
            if listed and listed["unreachable"]:
                self.failures.append((other.name, listed["unreachable"]))
            self.done += 1

    def _ask(self, node, method, path, body, wanted):
        connection = http.client.HTTPSConnection(
            node.host, self.fleet.api, timeout=PATIENCE_S, context=self.context
        )
        headers = {"Content-Type": "application/json", "Prefer": "wait=20"} if body else {}
        try:
            with contextlib.closing(connection):
                connection.request(method, path, json.dumps(body) if body else None, headers)
                answer = connection.getresponse()
                data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.failures.append((node.name, method, path, repr(error)))
            return None
        if answer.status != wanted:
            self.failures.append((node.name, method, path, answer.status, data))
            return None
        return json.loads(data)

    def goes_on(self, rounds=9):
        """Some more of it."""
        before = self.done
        eventually(lambda: self.done >= before + rounds, "requests are answered")


@pytest.fixture
def fleet(tmp_path):
    made = RealFleet(tmp_path, "kitchen", "garage", "attic")
    yield made
    made.close()


def play(fleet, *, rotate=False, names=()):
    """What the playbook does: ask every node, sign for all, install everywhere, reload everywhere."""
    nodes = [fleet.nodes[name] for name in names or fleet.nodes]
    requests = []
    for node in nodes:
        made = NodeFolder(node.folder).request(rotate=rotate)
        requests.append(
            Request(
                name=node.name,
                node_id=made.node_id,
                public_key=made.public_key,
                certificate=made.certificate,
                addresses=(node.host,),
            )
        )
    answer = fleet.authority.sign(requests)
    for node in nodes:
        signed = answer.nodes[node.name]
        assert not signed.error
        NodeFolder(node.folder).install(signed.certificate.encode(), answer.ca.encode(), answer.crl.encode())
        reloads = node.log().count("reloaded")
        node.reload()
        eventually(lambda node=node, n=reloads: node.log().count("reloaded") > n, f"{node.name} reloads")


def test_new_keys_and_a_new_ca_under_load(fleet):
    fleet.start()
    (first,) = fleet.authority.fingerprints
    keys = {name: (node.folder / "pki" / "node.key").read_bytes() for name, node in fleet.nodes.items()}
    rotation = fleet.authority.rotation()
    began = time.monotonic()
    with Load(fleet) as load:
        load.goes_on()
        play(fleet, rotate=True)
        load.goes_on()
        rotation.begin()
        load.trust()
        play(fleet)
        load.goes_on()
        rotation.reissue()
        play(fleet)
        load.goes_on()
        play(fleet)  # tells the controller that every node has the new one
        rotation.finish()
        load.trust()
        play(fleet)
        load.goes_on(30)
    assert load.failures == []
    assert first not in fleet.authority.fingerprints
    for name, node in fleet.nodes.items():
        assert (node.folder / "pki" / "node.key").read_bytes() != keys[name]
        assert node.sees() == dict.fromkeys(fleet.nodes, "alive")
        assert "kept the old ones" not in node.log()
        assert "Traceback" not in node.log()
    print(f"{load.done} rounds of 3 requests in {time.monotonic() - began:.1f} s, none failed")


def test_the_last_step_waits_for_a_node_that_is_off(fleet):
    kitchen, garage = fleet.start("kitchen", "garage")
    rotation = fleet.authority.rotation()
    up = ("kitchen", "garage")
    for step in (rotation.begin, rotation.reissue):
        step()
        play(fleet, names=up)
    play(fleet, names=up)
    assert rotation.pending() == ["attic"]
    # It missed all of it: nobody is taken down by that, and it joins again once the play reaches it.
    attic = fleet.nodes["attic"].start()
    eventually(lambda: "wrong_ca" in attic.log(), "attic does not know the new CA")
    play(fleet, names=("attic",))
    for node in (kitchen, garage, attic):
        fleet.wait_seen(node, "kitchen", "garage", "attic")
    play(fleet)
    rotation.finish()
    play(fleet)
    for node in (kitchen, garage, attic):
        fleet.wait_seen(node, "kitchen", "garage", "attic")


def test_a_revoked_node_is_out_at_once_and_also_where_the_news_came_late(fleet):
    """``garage`` is off when ``attic`` is revoked, and nobody touches its files: a peer tells it."""
    kitchen, garage, attic = fleet.start()
    garage.stop()
    fleet.authority.revoke("attic")
    play(fleet, names=("kitchen",))
    began = time.monotonic()
    eventually(lambda: kitchen.sees()["attic"] == "dead", "kitchen drops attic")
    assert time.monotonic() - began < 10
    shown = next(node for node in kitchen.get("/api/v1/nodes")["nodes"] if node["name"] == "attic")
    assert "is revoked" in shown["reason"]
    garage.start()
    began = time.monotonic()
    eventually(lambda: garage.sees().get("attic") in (None, "dead"), "garage drops attic")
    assert time.monotonic() - began < 10
    fleet.wait_seen(garage, "kitchen")
    # It keeps what it learned: alone, and from its own disk.
    garage.stop()
    kitchen.stop()
    garage.start()
    eventually(
        lambda: "reason=revoked" in garage.log().split("stopped")[-1], "garage refuses attic by itself"
    )
    assert garage.sees().get("attic") in (None, "dead")
    assert attic.process.poll() is None
