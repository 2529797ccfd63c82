"""Who knocks on the two ports of a real node and does not belong there: it goes on, and its log says who."""

import contextlib
import errno
import itertools
import random
import socket
import ssl
import threading
import time

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from real_fleet import PATIENCE_S, RealFleet, eventually

from edgeorch.identity import Authority, issue, pem
from edgeorch.identity.ca_files import CaFiles
from edgeorch.model import Caller, NodeInfo, Offer, new_node_id, ulid
from edgeorch.wire import frames
from edgeorch.wire.codec import body
from edgeorch.wire.frames import FrameBuffer, Kind
from edgeorch.wire.messages import (
    Failure,
    FindRuns,
    Hello,
    MakeOffer,
    Ping,
    Refused,
    Renew,
    Report,
    ReportTaken,
    RunState,
    StopAttempt,
)

WEBSOCKET = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bKdPyn3u98cTfZJSh4TNeQ==\r\n\r\nx"
)
H2C = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAAA\r\n\r\n"
)
HTTP = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    made = RealFleet(tmp_path_factory.mktemp("strangers"), "kitchen")
    made.nodes["kitchen"].start()
    yield made
    made.close()


@pytest.fixture
def node(fleet):
    node = fleet.nodes["kitchen"]
    yield node
    assert node.process.poll() is None
    assert node.ended(node.submit("true"))["state"] == "succeeded"
    assert "Traceback" not in node.log()


class Stranger:
    """Comes from an address of its own, so that the node's log tells it from others."""

    number = 0

    def __init__(self, node, port):
        Stranger.number += 1
        self.node, self.port = node, port
        self.address = f"127.199.{Stranger.number // 250}.{1 + Stranger.number % 250}"

    def connect(self, context=None):
        sock = socket.create_connection((self.node.host, self.port), PATIENCE_S, (self.address, 0))
        return context.wrap_socket(sock) if context else sock

    def knock(self, data=b"", context=None):
        """Send, and read until the node closes the connection."""
        try:
            with self.connect(context) as sock:
                sock.sendall(data)
                if context is None:
                    sock.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: sock.recv(65_536), b""))
        except (ssl.SSLError, ConnectionError):
            return b""
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # the node was faster to close it
                raise
            return b""

    def told(self, reason):
        """Wait for the log line with this reason."""
        return eventually(
            lambda: [
                line
                for line in self.node.log().splitlines()
                if f"address={self.address}" in line and f"reason={reason}" in line
            ],
            f"{reason} for {self.address} in {self.node.folder}/log",
        )


@pytest.fixture
def stranger(node, fleet):
    return Stranger(node, fleet.wire)


def context_of(folder=None, *, version=ssl.TLSVersion.TLSv1_3, alpn="edgeorch/1"):
    """A client that trusts everybody and shows the certificate in ``folder/pki``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = version
    context.set_alpn_protocols([alpn])
    if folder is not None:
        context.load_cert_chain(folder / "pki" / "node.pem", folder / "pki" / "node.key")
    return context


def keys(folder, authority, name="mallory", **how):
    """Files of a node of this CA; returns its id."""
    issued = authority.issue(name, replace=True, **how)
    issued.write(folder)
    return issued.entry.id


def self_made(folder, certificate, key):
    (folder / "pki").mkdir()
    (folder / "pki" / "node.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "pki" / "node.key").write_bytes(pem.write_private(key))
    return context_of(folder)


def hello(node_id, **fields):
    info = NodeInfo(id=node_id, name="mallory", fleet="test", version="1", wire_port=1)
    return bytes(frames.encode(Kind.LINK, 0, Hello(info=info, **fields)))


def messages(data):
    return [body(frame) for frame in FrameBuffer().feed(data)]


# The wire port


def test_garbage(stranger):
    rng = random.Random(11)
    for size in (0, 1, 5, 100, 5000, 100_000):
        stranger.knock(rng.randbytes(size))
    for packet in (b"\x16\x03\x01\xff\xff" + bytes(100), b"SSH-2.0-x\r\n", b"\xff" * 5000, b"\x80\x2e\x01"):
        stranger.knock(packet)
    assert stranger.told("not_tls")


def test_plain_http(stranger):
    stranger.knock(HTTP)
    assert stranger.told("not_tls")


def test_old_tls(stranger, tmp_path, fleet):
    keys(tmp_path, fleet.authority)
    stranger.knock(context=context_of(tmp_path, version=ssl.TLSVersion.TLSv1_2))
    assert stranger.told("old_tls")


def test_no_certificate(stranger):
    stranger.knock(b"x", context_of())
    assert stranger.told("no_identity")


def test_another_protocol(stranger, tmp_path, fleet):
    keys(tmp_path, fleet.authority)
    stranger.knock(HTTP, context_of(tmp_path, alpn="h2"))
    assert stranger.told("alpn")


def test_a_ca_of_the_same_name(stranger, tmp_path):
    node_id = keys(tmp_path, Authority.create(tmp_path / "ca", "test"))
    stranger.knock(hello(node_id), context_of(tmp_path))
    assert stranger.told("wrong_ca")


def test_a_self_signed_certificate(stranger, tmp_path):
    key = issue.new_key()
    stranger.knock(b"x", self_made(tmp_path, issue.ca_certificate(key, "test", time.time()), key))
    assert stranger.told("wrong_ca")


def test_a_certificate_of_this_ca_for_another_fleet(stranger, tmp_path, fleet):
    signer, key = CaFiles(fleet.folder / "ca", None, time.time).signer(), issue.new_key()
    node_id = new_node_id(random.Random())
    wish = {
        "fleet": "other",
        "node_id": node_id,
        "name": "mallory",
        "addresses": (),
        "wall": time.time(),
        "days": 9,
    }
    context = self_made(
        tmp_path, issue.node_certificate(signer.certificate, signer.key, key.public_key(), **wish), key
    )
    (said,) = messages(stranger.knock(hello(node_id), context))
    assert isinstance(said, Refused)
    assert stranger.told("wrong_fleet")


@pytest.mark.parametrize(("days", "reason"), [(-1000, "expired"), (30, "clock")])
def test_a_certificate_out_of_its_time(stranger, tmp_path, fleet, days, reason):
    then = Authority.open(fleet.folder / "ca", wall=lambda: time.time() + days * 86_400)
    node_id = keys(tmp_path, then, name=reason)
    stranger.knock(hello(node_id), context_of(tmp_path))
    assert stranger.told(reason)


def test_a_node_that_claims_to_be_another(stranger, tmp_path, fleet):
    keys(tmp_path, fleet.authority)
    for claimed in (stranger.node.id, "0123456789", ""):
        (said,) = messages(stranger.knock(hello(claimed), context_of(tmp_path)))
        assert isinstance(said, Refused)
    assert stranger.told("id_mismatch")
    assert "mallory" not in stranger.node.sees()


def test_a_node_that_claims_the_name_of_another(stranger, tmp_path, fleet):
    """Tasks are pinned to nodes by name, too."""
    node_id = keys(tmp_path, fleet.authority)
    info = NodeInfo(id=node_id, name="kitchen", fleet="test", version="1", wire_port=1)
    greeting = bytes(frames.encode(Kind.LINK, 0, Hello(info=info)))
    (said,) = messages(stranger.knock(greeting, context_of(tmp_path)))
    assert isinstance(said, Refused)
    assert stranger.told("id_mismatch")


def test_a_node_at_a_port_that_is_none(stranger, tmp_path, fleet):
    """Dialled, it would raise OverflowError."""
    node_id = keys(tmp_path, fleet.authority)
    info = NodeInfo(id=node_id, name="mallory", fleet="test", version="1", wire_port=2**64 - 1)
    info = msgspec.structs.replace(info, addresses=("127.0.0.1",))
    stranger.knock(bytes(frames.encode(Kind.LINK, 0, Hello(info=info))), context_of(tmp_path))
    assert stranger.told("no_hello")


def test_a_probe_that_claims_another_node(stranger, tmp_path, fleet):
    """The certificate and the Hello fit; then it speaks for somebody else."""
    node_id = keys(tmp_path, fleet.authority)
    info = NodeInfo(id=stranger.node.id, name="kitchen", fleet="test", version="1", incarnation=1 << 40)
    lie = bytes(frames.encode(Kind.REQUEST, 1, Ping(info=info)))
    with stranger.connect(context_of(tmp_path)) as sock:
        sock.sendall(hello(node_id) + lie)
        # Whether it is answered with a failure or the link is cut: nothing is believed.
        eventually(
            lambda: stranger.node.id in stranger.node.log() and "claims" in stranger.node.log(),
            "it is logged",
        )
    assert stranger.node.get("/api/v1/nodes/self")["name"] == "kitchen"
    eventually(lambda: stranger.node.sees()["mallory"] != "alive", "mallory is gone")


def test_frames_that_are_none(stranger, tmp_path, fleet):
    node_id = keys(tmp_path, fleet.authority)
    context, greeting = context_of(tmp_path), hello(node_id)
    nested = b"\x95\x02\x01\xc0\xa4Ping" + b"\x91" * 60_000 + b"\x01"
    bad = [
        b"\xff\xff\xff\xff",  # oversized
        b"\0\0\0\0",
        b"\0\0\0\1\xc1",
        (1 << 20).to_bytes(4, "big") + bytes(1 << 20),
        len(nested).to_bytes(4, "big") + nested,
        frames.encode(Kind.REQUEST, 1),
        frames.encode(Kind.ITEM, 99),
    ]
    with stranger.connect(context) as sock:
        sock.sendall(greeting + greeting)
    for data in bad:
        stranger.knock(bytes(data), context)
        with stranger.connect(context) as sock:
            sock.sendall(greeting + bytes(data))
    for length in (1, 3, 4, 10, len(greeting) - 1):
        with stranger.connect(context) as sock:
            sock.sendall(greeting[:length])
        with stranger.connect(context) as sock:
            sock.sendall(greeting + greeting[:length])
    assert stranger.told("no_hello")


def offer(node_id, number=1, *, task_id="", argv=("true",)):
    """An offer of the node with this id, or in the name of another task's origin."""
    task_id = task_id or ulid(time.time(), random.Random().getrandbits(80), node_id)
    spec = {"name": "a", "service": [{"driver": "native", "argv": list(argv)}]}
    caller = Caller(token="mallory", role="submit")
    said = Offer(
        task_id=task_id,
        number=number,
        origin=node_id,
        name="a",
        spec=msgspec.json.encode(spec),
        caller=caller,
    )
    return MakeOffer(offer=said)


def ask(sock, number, request):
    """Send a request over a link that is up; return what it is answered with."""
    sock.sendall(frames.encode(Kind.REQUEST, number, request))
    for frame in frames_of(sock):
        if frame.kind == Kind.ANSWER and frame.id == number:
            return body(frame)
    raise AssertionError("the link was closed")


def frames_of(sock):
    buffer = FrameBuffer()
    for data in iter(lambda: sock.recv(65_536), b""):
        yield from buffer.feed(data)


def test_frames_played_again(stranger, tmp_path, fleet):
    """The same offer, under new numbers and over new links, starts the service once."""
    node_id = keys(tmp_path, fleet.authority)
    context, ran = context_of(tmp_path), tmp_path / "ran"
    again = offer(node_id, argv=("sh", "-c", f"echo once >>{ran}"))
    for _ in range(3):
        with stranger.connect(context) as sock:
            sock.sendall(hello(node_id))
            for number in range(1, 6):
                assert ask(sock, number, again).accepted
    eventually(ran.exists, "it ran")
    count = itertools.count(1)
    with stranger.connect(context) as sock:
        sock.sendall(hello(node_id))
        (known,) = eventually(
            lambda: [
                run
                for run in ask(sock, next(count), FindRuns(task_ids=(again.offer.task_id,))).runs
                if run.state == "succeeded"
            ],
            "it ended",
        )
    assert known.key == again.offer.key
    assert ran.read_text() == "once\n"


def test_a_recorded_connection_played_again(stranger, tmp_path, fleet):
    """What crossed the wire once says nothing the second time: keys are fresh for each connection."""
    node_id = keys(tmp_path, fleet.authority)
    recorded = bytearray()

    class Tap:
        """TLS in memory over a socket, with a copy of what was sent."""

        def __init__(self, sock):
            self.sock = sock
            self.inbound, self.outbound = ssl.MemoryBIO(), ssl.MemoryBIO()
            self.tls = context_of(tmp_path).wrap_bio(self.inbound, self.outbound)

        def until(self, done):
            while True:
                try:
                    answer = done()
                except ssl.SSLWantReadError:
                    answer = None
                data = self.outbound.read()
                recorded.extend(data)
                self.sock.sendall(data)
                if answer is not None:
                    return answer
                self.inbound.write(self.sock.recv(65_536))

    with stranger.connect() as sock:
        tap = Tap(sock)
        tap.until(lambda: tap.tls.do_handshake() or True)
        tap.until(lambda: tap.tls.write(hello(node_id)))
        assert isinstance(messages(tap.until(lambda: tap.tls.read(65_536)))[0], Hello)
    answer = stranger.knock(recorded)
    # A handshake that leads nowhere: no Hello in it, and no link.
    assert node_id.encode() not in answer
    assert len(answer) < 5000
    eventually(lambda: stranger.node.sees()["mallory"] != "alive", "mallory is not here")


def test_a_node_that_speaks_for_another_origin(stranger, tmp_path, fleet):
    node_id, kitchen = keys(tmp_path, fleet.authority), stranger.node
    task = kitchen.submit("sleep", "60")
    eventually(lambda: kitchen.get(f"/api/v1/tasks/{task['id']}")["state"] == "running", "it runs")
    lies = (
        offer(node_id, task_id=task["id"]),
        offer(kitchen.id, task_id=task["id"], number=2),
        StopAttempt(key=f"{task['id']}.1"),
        FindRuns(task_ids=(task["id"],)),
        StopAttempt(key="nonsense"),
    )
    with stranger.connect(context_of(tmp_path)) as sock:
        sock.sendall(hello(node_id))
        for number, lie in enumerate(lies, 1):
            assert isinstance(ask(sock, number, lie), Failure)
        ended = RunState(key=f"{task['id']}.1", state="failed", sequence=99)
        assert ask(sock, 90, Report(run=ended)) == ReportTaken(sequence=99, known=False)
        assert ask(sock, 91, Renew(keys=(ended.key,))).keys == ()
    assert "speaks for another node" in kitchen.log()
    assert kitchen.get(f"/api/v1/tasks/{task['id']}")["state"] == "running"
    kitchen.request("DELETE", f"/api/v1/tasks/{task['id']}")
    assert kitchen.ended(task)["state"] == "cancelled"


def test_a_newer_protocol(stranger, tmp_path, fleet):
    node_id = keys(tmp_path, fleet.authority)
    greeting = hello(node_id, protocol_min=90, protocol_max=99)
    (said,) = messages(stranger.knock(greeting, context_of(tmp_path)))
    assert "speaks protocol" in said.reason
    assert stranger.told("protocol")


def test_idle_connections(tmp_path):
    """Three hundred that say nothing, on each port, and a fleet goes on meeting and working."""
    fleet = RealFleet(tmp_path, "kitchen", "garage")
    with contextlib.ExitStack() as stack:
        stack.callback(fleet.close)
        (kitchen,) = fleet.start("kitchen")
        for port in (fleet.wire, fleet.api):
            idle = Stranger(kitchen, port)
            for _ in range(300):
                stack.enter_context(idle.connect())
        garage = fleet.nodes["garage"].start()
        fleet.wait_seen(kitchen, "garage")
        fleet.wait_seen(garage, "kitchen")
        assert kitchen.ended(kitchen.submit("true", placement={"node": "garage"}))["state"] == "succeeded"
        assert "Traceback" not in kitchen.log()


def test_a_revoked_node_is_out_everywhere(tmp_path):
    """The list is given to one node; the other gets it from there."""
    fleet = RealFleet(tmp_path, "kitchen", "garage", "attic")
    try:
        kitchen, garage, attic = fleet.start()
        attic_id = attic.id
        fleet.authority.revoke("attic")
        (garage.folder / "pki" / "crl.pem").write_bytes((fleet.folder / "ca" / "crl.pem").read_bytes())
        garage.reload()
        for node in (garage, kitchen):
            eventually(lambda node=node: node.sees()["attic"] in ("dead", "left"), f"{node.name} drops attic")
            eventually(lambda node=node: "reason=revoked" in node.log(), f"{node.name} says why")
        assert kitchen.sees()["garage"] == "alive"
        # Not even when it starts anew.
        attic.stop()
        (attic.folder / "pki" / "crl.pem").unlink()
        attic.start()
        eventually(lambda: "revoked" in attic.log(), "attic is told why")
        stranger = Stranger(kitchen, fleet.wire)
        (said,) = messages(stranger.knock(hello(attic_id), context_of(attic.folder)))
        assert "revoked" in said.reason
        assert stranger.told("revoked")
        assert kitchen.sees()["attic"] in ("dead", "left")
        task = kitchen.submit("true", placement={"node": "attic"})
        assert kitchen.get(f"/api/v1/tasks/{task['id']}")["state"] == "waiting"
        assert all("Traceback" not in node.log() for node in fleet.nodes.values())
    finally:
        fleet.close()


def test_an_impostor_at_a_seeds_address(tmp_path):
    """The node dials, and somebody else is there: another CA, or no TLS at all."""
    fleet = RealFleet(tmp_path / "home", "kitchen", "garage", "attic")
    other = RealFleet(tmp_path / "other", "garage").nodes["garage"]
    with contextlib.ExitStack() as stack:
        stack.callback(fleet.close)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(other.folder / "pki" / "node.pem", other.folder / "pki" / "node.key")
        context.set_alpn_protocols(["edgeorch/1"])
        impostor(
            stack,
            fleet.nodes["garage"].host,
            fleet.wire,
            lambda sock: context.wrap_socket(sock, server_side=True),
        )
        impostor(
            stack,
            fleet.nodes["attic"].host,
            fleet.wire,
            lambda sock: sock.sendall(b"SSH-2.0-x\r\n" * 9) or sock,
        )
        (kitchen,) = fleet.start("kitchen")
        eventually(lambda: "need certificates of the same CA" in kitchen.log(), "it says wrong CA")
        eventually(lambda: "not_tls" in kitchen.log(), "it says not TLS")
        assert set(kitchen.sees()) == {"kitchen"}
        assert kitchen.ended(kitchen.submit("true"))["state"] == "succeeded"
        assert "Traceback" not in kitchen.log()


def impostor(stack, host, port, answer):
    """A server in a thread that ends with ``stack``."""
    server = socket.create_server((host, port))

    def serve():
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), answer(sock) as answered:
                answered.settimeout(5)
                answered.recv(65_536)

    thread = threading.Thread(target=serve)
    thread.start()
    stack.callback(thread.join)
    stack.callback(server.close)
    stack.callback(server.shutdown, socket.SHUT_RDWR)


# The REST port


@pytest.mark.parametrize("packet", [WEBSOCKET, H2C], ids=["websocket", "h2c"])
def test_packets_that_kill_others(node, fleet, packet):
    for _ in range(5):
        with Stranger(node, fleet.api).connect() as sock:
            sock.sendall(packet)
            assert sock.recv(65_536).startswith(b"HTTP/1.1 200")
    assert Stranger(node, fleet.api).knock(HTTP).startswith(b"HTTP/1.1 200")


def test_anything_at_the_rest_port(node, fleet):
    rng = random.Random(12)
    packets = [rng.randbytes(size) for size in (1, 10, 1000, 100_000)]
    packets += [
        b"\x16\x03\x01\xff\xff" + rng.randbytes(500),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"GET http://[bad/ HTTP/1.1\r\nHost: [bad\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        hello(node.id),
    ]
    for packet in packets:
        Stranger(node, fleet.api).knock(packet)
    assert Stranger(node, fleet.api).knock(HTTP).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "rebound.evil.example"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
    ids=str,
)
def test_a_page_on_another_origin(node, headers, status):
    """What a browser on this machine would send for it, on both routes that start something."""
    before = node.get("/api/v1/tasks?limit=1")["tasks"]
    task = {"name": "a", "service": [{"driver": "native", "argv": ["true"]}]}
    original = {"ServiceName": "a", "ServiceInfo": [{"ExecutionType": "native", "ExecCmd": ["true"]}]}
    for path, said in (("/api/v1/tasks", task), ("/api/v1/orchestration/services", original)):
        assert node.request("POST", path, said, **headers)[0] == status
    assert node.get("/api/v1/tasks?limit=1")["tasks"] == before


def test_tls_at_the_rest_port(node, fleet):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=str(node.folder / "pki" / "ca.pem"))
        context.maximum_version = version
        sock = Stranger(node, fleet.api).connect()
        with context.wrap_socket(sock, server_hostname=node.host) as secured:
            secured.sendall(HTTP)
            assert secured.recv(65_536).startswith(b"HTTP/1.1 200")
    # A client that does not know the fleet's CA goes away in the middle of the handshake.
    with pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(
            Stranger(node, fleet.api).connect(), server_hostname=node.host
        )
    with Stranger(node, fleet.api).connect(context_of(alpn="h2")) as secured:
        secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100))
        with contextlib.suppress(OSError):
            secured.recv(65_536)
