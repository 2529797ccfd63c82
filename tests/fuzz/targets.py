"""Everything here that reads what others wrote, each behind one function from bytes to the kind of outcome.

A target returns a short text that says how its input was read, or why it was refused; an input whose outcome
was not there before is worth changing further. Whatever a target raises is a defect.
"""

import atexit
import functools
import json
import random
import re
import shutil
import ssl
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.worker_context import WorkerContext
from structlog.testing import capture_logs
from trio.testing import MockClock
from zeroconf.asyncio import AsyncServiceInfo

from edgeorch import config, constraints
from edgeorch.config import Api
from edgeorch.docker_options import parse, split
from edgeorch.errors import ConfigError, EdgeorchError, IdentityError
from edgeorch.identity import issue
from edgeorch.identity.revocation import read_revocations
from edgeorch.membership.mdns import Fleet
from edgeorch.membership.responder import SERVICE, Responder
from edgeorch.model import Caller, ContainerService, NodeInfo, Peer, PeerState, TaskSpec
from edgeorch.policy import Policy
from edgeorch.policy.callback_targets import CallbackTargets
from edgeorch.policy.images import Images
from edgeorch.rest import tokens
from edgeorch.rest.api import create_app
from edgeorch.rest.auth import Tokens, check_browser
from edgeorch.rest.backend import NodeView
from edgeorch.rest.connection import Connection
from edgeorch.rest.decode import submissions_of
from edgeorch.rest.http1 import BadRequestError, Reader
from edgeorch.rest.views import node_document
from edgeorch.runner import protocol
from edgeorch.scheduler import Candidate, rank
from edgeorch.services import load_services
from edgeorch.testing.backend import MemoryBackend
from edgeorch.timing import Histogram
from edgeorch.wire import codec, frames
from edgeorch.wire.frames import FrameBuffer, Kind
from edgeorch.wire.messages import TYPES, Hello, Ping

sys.path.insert(0, str(Path(__file__).parents[1]))

from odd_values import odd

NODE = NodeInfo(
    id="0123456789",
    name="kitchen",
    fleet="home",
    version="1.2.3",
    labels={"zone": "a"},
    drivers={"native": "1"},
)
SPEC = b'{"name":"a","service":[{"driver":"native","argv":["true"]}]}'
_VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\d+")


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        run: reads bytes.
        seeds: good input, to begin with.
        words: pieces that mean something to it.
        share: of the time, where it is slower than the others.
    """

    run: Callable[[bytes], str]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    share: int = 1


def why(error, *quoted):
    """The kind of refusal: its sentence without what varies, and without the texts that it quotes."""
    said = str(error)
    for text in quoted:
        said = said.replace(repr(text), "_") if text else said
    said = "".join(char if char.isascii() and char.isprintable() else "?" for char in said)
    return f"{type(error).__name__}: {_VARIES.sub('_', said)[:60]}"


def text_of(data):
    return data.decode("utf-8", "surrogateescape")


# Between nodes


def wire(data):
    said, buffer = [], FrameBuffer()
    half = len(data) // 2
    try:
        for part in (data[:half], data[half:]):
            for frame in buffer.feed(part):
                frames.time_left(frame)
                try:
                    said.append(type(codec.body(frame)).__name__)
                except EdgeorchError as error:
                    said.append(why(error))
    except EdgeorchError as error:
        said.append(why(error))
    return " ".join(said[:3])


def _frame(kind, message):
    return bytes(frames.encode(kind, 7, message, 1.5))


def _wire_seeds():
    rng = random.Random(3)
    made = [_frame(Kind.LINK, Hello(info=NODE)), _frame(Kind.REQUEST, Ping(info=NODE))]
    for name, kind in sorted(TYPES.items()):
        body = msgspec.msgpack.encode([2, 7, None, name, odd(rng, kind)])
        made.append(len(body).to_bytes(4, "big") + body)
    return tuple(made)


def peer(data):
    """What a node says of itself, of the right types, through placement and out of the API."""
    rng = random.Random(data)
    try:
        ping = msgspec.msgpack.decode(msgspec.msgpack.encode(odd(rng, Ping)), type=Ping)
    except msgspec.ValidationError as error:
        return why(error)
    known = Peer(info=ping.info, state=PeerState.ALIVE, since=0.0, sample=ping.sample)
    spec = msgspec.json.decode(SPEC, type=TaskSpec)
    (line,) = rank(spec, [Candidate(peer=known)], rng, accepting=NODE.id)
    assert line.score.value >= 0, line
    msgspec.json.encode(node_document(NodeView(peer=known, score=line.score, is_self=False), 0.0))
    return f"{_VARIES.sub('_', line.refusal)[:60]} {line.score.value > 0}"


def mdns(data):
    """A TXT record, and a name."""
    found = []
    name, _, text = data.partition(b"|")
    info = AsyncServiceInfo(SERVICE, f"x.{SERVICE}", addresses=[b"\x0a\0\0\1"], port=1, properties=text)
    responder = Responder([], NODE.id, lambda node_id, what: found.append((node_id, what)))
    responder._report(text_of(name), info)
    ours = [one for _, one in found if one and Fleet("home", "aa,bb").includes(one.fleet, one.ca)]
    return f"{len(found)} {len(ours)}"


CA_KEY = ec.derive_private_key(7, ec.SECP256R1())
CA = issue.ca_certificate(CA_KEY, "home", 1.8e9)


def revocations(data):
    """PEM, or what PEM holds."""
    pem = (
        data
        if data.startswith(b"-----")
        else ssl.DER_cert_to_PEM_cert(data).replace("CERTIFICATE", "X509 CRL").encode()
    )
    try:
        read = read_revocations(pem, [CA], "crl.pem")
    except IdentityError as error:
        return why(error)
    return f"read {len(read.serials)}"


def _revocation_seeds():
    made = issue.revocation_list(CA, CA_KEY, [(5, 1.8e9), (9, 1.8e9)], number=3, wall=1.8e9)
    return made.public_bytes(Encoding.DER), made.public_bytes(Encoding.PEM)


def runner(data):
    said = []
    for inbox in (protocol.requests(), protocol.replies()):
        try:
            said += [type(message).__name__ for message in inbox.feed(data)]
        except protocol.FrameError as error:
            said.append(why(error))
    return " ".join(said[:4])


# What people write


CONTAINER = TaskSpec(name="a", service=(ContainerService(image="a"),))
CALLER = Caller(token="a", role="submit")
JUDGE = Policy(config.Policy(images=("*",), host_paths=("/a",), devices=("/dev/a*",), volumes=("*b",)))


def docker(data):
    """Options, a line each; and what a policy says of them."""
    words = text_of(data).split("\n")
    try:
        body, facts = parse(*split(["docker", "run", *words]), read_file=lambda _: data)
    except EdgeorchError as error:
        return why(error, *words)
    assert json.loads(json.dumps(body)) == body
    assert facts.privileged == body["HostConfig"]["Privileged"]
    try:
        JUDGE.check(CONTAINER, CONTAINER.service[0], CALLER, runner_is_other_user=True, container=facts)
    except EdgeorchError as error:
        return why(error, *words)
    return " ".join(sorted(key for key, value in body["HostConfig"].items() if value))[:80]


def constraint(data):
    try:
        expression = constraints.parse(text_of(data))
    except EdgeorchError as error:
        return why(error, text_of(data))
    return f"{type(expression).__name__} {constraints.holds(expression, NODE)}"


@functools.cache
def _folder():
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="edgeorch-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "services.d").mkdir()
    (folder / "apps" / "a").mkdir(parents=True)
    return folder


def configuration(data):
    """The file; and its lines as environment."""
    path = _folder() / "edgeorch.toml"
    path.write_bytes(data)
    lines = text_of(data).replace("\0", "").split("\n")
    env = dict(line.partition("=")[::2] for line in lines if line.startswith("EDGEORCH_"))
    try:
        loaded = config.load(path, env)
    except ConfigError as error:
        return why(error).replace(str(path), "")
    return f"read {len(loaded.origins)}"


def services(data):
    (_folder() / "services.d" / "a.toml").write_bytes(data)
    (_folder() / "apps" / "a" / "a.conf").write_bytes(data)
    found, warnings = load_services(_folder() / "services.d", _folder() / "apps")
    return f"{len(found)} {[_VARIES.sub('_', text.rpartition(str(_folder()))[2])[:60] for text in warnings]}"


def policy(data):
    """An entry for images and an image, an entry for callbacks and a host, a line each."""
    entry, image, target, host = (*text_of(data).split("\n"), *"****")[:4]
    try:
        said = [Images([entry]).refusal(image)]
    except ValueError as error:
        said = [why(error, entry)]
    try:
        said.append(CallbackTargets([target]).refusal_at_the_door(host, loopback=False))
    except ValueError as error:
        said.append(why(error, target))
    return " ".join(_VARIES.sub("_", text.replace(image, "_").replace(host, "_"))[:60] for text in said)


def token_file(data):
    try:
        return f"read {len(tokens.read_tokens(data, 'tokens.toml'))}"
    except ConfigError as error:
        return why(error)


# REST


def body(data):
    try:
        found, several = submissions_of(data)
    except EdgeorchError as error:
        return why(error)
    return f"{len(found)} {several}"


def browser(data):
    """Host, Origin and Content-Type, a line each."""
    host, origin, kind = (*text_of(data).split("\n"), "", "", "")[:3]
    try:
        check_browser({"host": host, "origin": origin, "content-type": kind})
    except EdgeorchError as error:
        return why(error, host, origin, kind, host[:80], origin[:80])
    return "let in"


@functools.cache
def _app():
    backend, api = MemoryBackend(), Api(port=0, anonymous_role="admin", max_body=20_000)
    backend.ends = True
    held = Tokens(Path("/nonexistent/tokens.toml"), api, clock=lambda: 0.0)
    app = create_app(backend, held, api, metrics=lambda: b"", wall=lambda: 1e9)
    hypercorn = HypercornConfig()
    hypercorn.errorlog = None
    return backend, api, ASGIWrapper(app), hypercorn


def reader(data):
    """The same requests and the same verdict, however the bytes are cut."""
    found = _read(data, len(data) or 1)
    assert _read(data, random.Random(data).choice((1, 2, 3, 5, 17))) == found
    requests, refused = found
    return f"{[(method, len(body) > 0) for method, _, _, body in requests[:3]]} {refused}"


def _read(data, step):
    reader, found = Reader(), []
    try:
        for start in range(0, len(data), step):
            reader.received(data[start : start + step])
            while True:
                reader.advance()
                if not reader.complete:
                    break
                scope, body = reader.call.scope, b"".join(event["body"] for event in reader.call.events)
                found.append((scope["method"], scope["raw_path"], scope["headers"], body))
                reader.done()
    except BadRequestError:
        return found, True
    return found, False


def http(data):
    """A whole connection: what comes back is HTTP, and nothing was unexpected."""
    with capture_logs() as logs:
        answer = trio.run(_converse, data, clock=MockClock(autojump_threshold=0))
    unexpected = [line for line in logs if line["log_level"] == "error"]
    assert not unexpected, unexpected
    assert not answer or answer.startswith(b"HTTP/1.1 "), answer[:200]
    statuses = re.findall(rb"^HTTP/1\.1 (\d+)", answer, re.MULTILINE)
    assert b"500" not in statuses, answer[:2000]
    titles = re.findall(rb'"title":"([^"]*)"', answer)
    return f"{statuses[:4]} {titles[:2]}"


async def _converse(data):
    backend, api, app, hypercorn = _app()
    backend.known.clear()
    backend._keys.clear()
    ours, theirs = trio.socket.socketpair()
    theirs = trio.SocketStream(theirs)
    connection = Connection(
        app, hypercorn, WorkerContext(None), trio.SocketStream(ours), api=api, tls=None, took=Histogram()
    )
    connection.client = ("127.0.0.1", 1)
    answer = bytearray()

    async def hear():
        async for piece in theirs:
            answer.extend(piece)

    async with theirs, trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        nursery.start_soon(hear)
        try:
            await theirs.send_all(data)
            await theirs.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
    return bytes(answer)


def _request(method, path, content=b"", *headers):
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    if content:
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode() + content


ORIGINAL = (
    b'{"ServiceName":"a","ServiceInfo":[{"ExecutionType":"container","ExecCmd":["docker","run","-v","/a:/b",'
    b'"busybox"]}],"SelfSelection":"true","StatusCallbackURI":"http://192.0.2.1/"}'
)
WHOLE = (
    b'{"name":"r","service":[{"driver":"container","image":"a/b:2","options":["-e","Q=9"],"args":["x"]},'
    b'{"driver":"native","argv":["/bin/x"],"env":{"Q":"9"}}],"placement":{"constraints":["arch == arm64"],'
    b'"prefer":[["labels.ssd == yes",10]],"mode":"best","count":1,"self":true,"node":null},"resources":'
    b'{"cpus":0.5,"memory":6},"timeout_s":6,"deadline_s":60,"priority":50,"retry":{"max_attempts":3,"on":'
    b'["rejected"],"backoff_s":1},"on_disconnect":"stop","callback_url":null,"metadata":{"a":"b"},"secrets":{"k":"v","l":{"base64":"dg=="}}}'
)
TASK = "01arz3ndektsv4rrffq69g5fav-0123456789"
JSON_WORDS = (
    b"null",
    b"true",
    b"[",
    b"{",
    b'"',
    b"1e999",
    b"-1",
    b"\\ud800",
    b"\\u0000",
    b"[" * 999,
    b'{"a":' * 999,
)
HTTP_WORDS = (
    *(b"\r\n", b"\r\n\r\n", b": ", b"chunked", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 0\r\n"),
    *(b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"Upgrade: h2c\r\nHTTP2-Settings: AAAA\r\n", b"%00"),
    *(
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
        b"HEAD ",
        b"%ff",
    ),
    *(
        b"Authorization: Bearer x\r\n",
        b"Idempotency-Key: k\r\n",
        b"Prefer: wait=1\r\n",
        b"Last-Event-ID: 9\r\n",
    ),
    *(
        b"Origin: http://evil.example\r\n",
        b"Host: evil.example\r\n",
        b"?follow=true",
        b"&tail=1",
        b"//",
        b"/../",
    ),
)
HTTP_REQUESTS = (
    _request("GET", "/healthz") + _request("HEAD", "/api/v1/nodes"),
    _request("POST", "/api/v1/tasks", SPEC, "Prefer: wait=1", "Idempotency-Key: a"),
    _request("POST", "/api/v1/tasks?dry_run=true", WHOLE, "Expect: 100-continue"),
    _request("POST", "/api/v1/orchestration/services", ORIGINAL),
    _request("GET", "/api/v1/tasks?state=running&name=a&limit=3&cursor=x&local=true"),
    _request("GET", f"/api/v1/tasks/{TASK}/output?stream=both&tail=3&offset=1&format=ndjson&follow=true"),
    _request("GET", f"/api/v1/tasks/{TASK}/events", b"", "Last-Event-ID: 4"),
    _request("DELETE", f"/api/v1/tasks/{TASK}") + _request("POST", "/api/v1/nodes/self/drain"),
    _request("POST", "/api/v1/tasks", b"", "Transfer-Encoding: chunked") + b"3\r\n{}\n\r\n0\r\n\r\n",
    _request("POST", "/api/v1/tasks", b"", "Transfer-Encoding: chunked", "Connection: close")
    + b"%x;a=b\r\n%b\r\n0\r\nTrailer: a\r\n\r\n" % (len(SPEC), SPEC),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)


TARGETS = {
    "wire": Target(wire, _wire_seeds(), tuple(name.encode() for name in TYPES)),
    "peer": Target(peer, (b"a", b"b")),
    "mdns": Target(
        mdns,
        (b"abc|\x0afleet=home\x05ca=aa\x06name=x", b"x|"),
        (b"fleet=", b"ca=", b"name=", b"\xff", b"=", b"|"),
    ),
    "revocations": Target(
        revocations,
        _revocation_seeds(),
        (b"-----BEGIN X509 CRL-----\n", b"-----END X509 CRL-----\n", b"\x30\x82"),
    ),
    "runner": Target(
        runner,
        tuple(
            protocol.encode(message)
            for message in (
                protocol.Start(id=1, key="a.1", argv=("true",), env={"A": "b"}, output_max=5, lease_s=1.5),
                protocol.Start(id=4, key="a.1", argv=("true",), env={}, output_max=5, most=2),
                protocol.Withdraw(id=5, key="a.1"),
                protocol.Stop(id=2, key="a.1", grace_s=10.0),
                protocol.Renew(leases={"a.1": 9.5}),
                protocol.Listed(id=3, attempts=(protocol.Known(key="a.1", folder="/a"),)),
                protocol.Exited(key="a.1", ended=protocol.Ended(exit_code=1, signal=9)),
            )
        ),
        (b"\xa4type", b"\xa5Start", b"\xc1", b"\xdf\xff\xff\xff\xff"),
    ),
    "docker": Target(
        docker,
        (
            b"-v\n/a:/b:ro\n-e\nA=b\n--rm\nimage\nx",
            b"--mount\ntype=bind,source=/a,target=/b,readonly\n-p\n127.0.0.1:80:80/udp\n--cap-add=NET_ADMIN\ni",
            b"--network\nname=n,alias=a\n--ulimit\nnofile=1:2\n--memory=64m\n--cpus\n1.5\n--gpus\nall\ni\n-x",
            b"--device\n/dev/a:/dev/b:r\n--log-opt\na=b\n--health-cmd\nx\n--restart\non-failure:3\n--\ni",
            b"--env-file\n/a\n--label-file\n/b\n--security-opt\nseccomp=/c\n--tmpfs\n/t:size=1m\ni",
            b"-p\n1-65535:1-65535\n--expose\n1-65535\n-v\nb:/b\ni",
        ),
        (
            b"\n",
            b"--",
            b"=",
            b":",
            b",",
            b"type=",
            b"container:",
            b"host",
            b"\0",
            b"-1",
            b"9" * 30,
            b"[::1]",
            b'"',
        ),
    ),
    "constraints": Target(
        constraint,
        (
            b"arch == arm64 and (labels.zone == kitchen or not cpus >= 4)",
            b"memory > 512M and drivers in (native, 'container') and name matches 'k.*'",
            b'version >= 1.2.3 and labels.ssd != "yes"',
        ),
        (
            b"and ",
            b"or ",
            b"not ",
            b"in (",
            b"matches ",
            b"(",
            b")",
            b"'",
            b"labels.",
            b"[a-",
            b"{9}",
            b"*",
            b"+",
        ),
    ),
    "config": Target(
        configuration,
        (
            b'[node]\nname="a"\nlisten=["127.0.0.1"]\nnetworks=["10.0.0.0/8"]\n[node.labels]\na="b"\n',
            b'[api]\nport=1\nanonymous_role="read"\n[policy]\nnative={submit="listed"}\n[lease]\nlease_s=9.5\n',
            b"EDGEORCH_API_PORT=1\nEDGEORCH_DISCOVERY_SEEDS=a,b:1\nEDGEORCH_POLICY_NATIVE=any\n",
        ),
        (
            b"\nEDGEORCH_NODE_LABELS={a=1}\n",
            b"[",
            b"]\n",
            b"=",
            b'"',
            b"'''",
            b"1e999",
            b"nan",
            b"[" * 999,
            b"\0",
        ),
    ),
    "services": Target(
        services,
        (
            b'argv = ["/usr/bin/resize", "-q"]\nname = "r"\nallow_args = true\nallow_env = ["Q"]\n',
            b"[ServiceInfo]\nServiceName = a\nExecutableFileName = b\nExecType = native\nVersion = x\n",
        ),
        (b"[DEFAULT]\n", b"[ServiceInfo]\n", b"%(a)s", b"= ", b"\n  ", b"[" * 999, b"\0", b'argv=["/"]\n'),
    ),
    "policy": Target(
        policy,
        (
            b"ghcr.io/acme/*\nghcr.io/acme/a:1@sha256:" + b"0" * 64 + b"\n10.0.0.0/8\n10.0.0.1",
            b"alpine:3.*\nalpine:3.1\n*.example\nhook.example.",
            b"sha256:" + b"0" * 64 + b"\nabc\n::/0\n[::ffff:169.254.169.254]",
        ),
        (
            b"\n",
            b"*",
            b"**",
            b"@sha256:",
            b":",
            b"/",
            b"localhost",
            b"0x7f.1",
            b"2130706433",
            b"[",
            b"%",
            b"::1",
        ),
    ),
    "tokens": Target(
        token_file,
        (
            b'[[token]]\nname = "a"\nrole = "submit"\nsha256 = "'
            + b"a" * 64
            + b'"\ncreated = 2026-01-01T00:00:00Z\n'
            b"expires = 2027-01-01T00:00:00Z\n",
        ),
        (b"[[token]]\n", b"0001-01-01T00:00:00+23:59", b"9999-12-31T23:59:60Z", b"[" * 999, b"=", b'"'),
    ),
    "body": Target(body, (SPEC, WHOLE, b"[" + SPEC + b"," + SPEC + b"]"), JSON_WORDS),
    "browser": Target(
        browser,
        (b"localhost:56001\nhttp://localhost:56001\napplication/json", b"[::1]:1\n\ntext/plain"),
        (b"localhost", b"127.0.0.1", b"http://", b"[", b"]", b":", b"@", b"null", b"\xff", b"%", b";"),
    ),
    "reader": Target(reader, HTTP_REQUESTS, HTTP_WORDS),
    "http": Target(http, HTTP_REQUESTS, (*HTTP_WORDS, *JSON_WORDS[:6]), share=8),
}
