"""Whatever is wrong, a person is told what to do about it, and the node goes on: on real node processes."""

import contextlib
import json
import shutil
import socket
import subprocess

import pytest
from real_fleet import RealFleet, eventually

from edgeorch.host import clock_synchronised

NATIVE = {"driver": "native", "argv": ["true"]}
TASKS = "/api/v1/tasks"
BIG = b'{"name": "x", "service": [{"driver": "native", "argv": ["' + b"x" * (2 << 20) + b'"]}]}'


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """One node for all of the module: what is bad for it, later tests notice."""
    fleet = RealFleet(tmp_path_factory.mktemp("bad"), "kitchen")
    try:
        yield fleet.nodes["kitchen"].start("[output]\nmax_bytes=1000000\n")
    finally:
        fleet.close()


@pytest.fixture(autouse=True)
def unharmed(request):
    """The same process still serves, and it has not shown a traceback."""
    yield
    if "node" in request.fixturenames:
        node = request.getfixturevalue("node")
        assert node.process.poll() is None
        assert node.ended(node.submit("true"))["state"] == "succeeded"
        assert "Traceback" not in node.log()


def problem(answer, status, slug):
    """The problem document of an answer; it must say what to do."""
    code, body = answer
    assert b"Traceback" not in body
    found = json.loads(body)
    assert (code, found["status"], found["type"]) == (status, status, f"/docs/problems#{slug}"), found
    assert found["title"]
    assert found["detail"]
    return found


def spec(**fields):
    return {"name": "x", "service": [NATIVE]} | fields


def native(**fields):
    return spec(service=[NATIVE | fields])


def container(*options, **fields):
    return spec(service=[{"driver": "container", "image": "x", "options": list(options)} | fields])


def placed(**fields):
    return spec(placement=fields)


INVALID = {
    # name: (body, where, what the answer must mention)
    "malformed": (b'{"name": "x",, }', "$", "line 1, column 14"),
    "cut off": (b'{"name": "x"', "$", "JSON"),
    "empty": (b"", "$", "JSON"),
    "not UTF-8": (b'{"name": "\xff\xfe"}', "$", "UTF-8"),
    "a lone surrogate": (b'{"name": "\\ud800", "service": []}', "$", "JSON"),
    "not a number": (b'{"name": NaN}', "$", "JSON"),
    "too deep": (b"[" * 100_000, "$", "nested too deeply"),
    "deep where any": (
        b'{"name": "x", "metadata": ' + b'{"a":' * 50_000,
        "$.metadata[...]",
        "expected `str`",
    ),
    "another type": (spec(name=7), "$.name", "expected `str`, got `int`"),
    "another type in an array": (native(argv=["sleep", 1]), "$.service[0].argv[1]", "expected `str`"),
    "null in an array": (native(argv=[None]), "$.service[0].argv[0]", "expected `str`"),
    "another type as a value": (native(env={"A": 1}), "$.service[0].env[...]", "expected `str`"),
    "a pair that is none": (placed(prefer=[["arch == arm64"]]), "$.placement.prefer[0]", "length 2"),
    "a string for a list": (native(argv="sleep 1"), "$.service[0].argv", "expected `array`"),
    "unknown field": (spec(nmae="y"), "$", "did you mean 'name'?"),
    "unknown field of a service": (native(argvv=["true"]), "$.service[0]", "did you mean 'argv'?"),
    "no service": (spec(service=[]), "$.service", "length >= 1"),
    "empty argv": (native(argv=[]), "$.service[0].argv", "length >= 1"),
    "empty batch": ([], "$", "length >= 1"),
    "bad item of a batch": ([spec(), spec(name="")], "$[1].name", "length >= 1"),
    "unknown driver": (native(driver="natvie"), "$.service[0].driver", "did you mean 'native'?"),
    "no driver": (spec(service=[{"argv": ["true"]}]), "$.service[0]", "driver"),
    "unknown mode": (placed(mode="bset"), "$.placement.mode", "did you mean 'best'?"),
    "negative": (spec(timeout_s=-1), "$.timeout_s", "> 0"),
    "huge": (spec(priority=10**30), "$.priority", "priority"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_body(node, name):
    body, where, mentioned = INVALID[name]
    found = problem(node.request("POST", TASKS, body), 400, "invalid-request")
    assert found["path"] == where
    assert mentioned in f"{found['detail']} {found['hint']}"
    assert len(json.dumps(found)) < 1000


CONSTRAINTS = {
    "arhc == arm64": "did you mean 'arch'?",
    "arch == ": "expected",
    "arch === arm64": "expected",
    "(arch == arm64": "expected",
    "": "empty",
    "(" * 5000 + "arch == arm64": "deep",
    "name matches (": "pattern",
    "cpus > many": "number",
}


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda text: text[:20] or "empty")
def test_an_impossible_constraint(node, constraint):
    for placement in ({"constraints": [constraint]}, {"prefer": [[constraint, 1]]}):
        found = problem(node.request("POST", TASKS, placed(**placement)), 400, "invalid-constraint")
        assert len(json.dumps(found)) < 2000


DOCKER = {
    ("--privileeged",): "--privileged",
    ("--cidfile", "/x"): "--cidfile",
    ("-p", "99999:1"): "99999",
    ("--memory", "lots"): "lots",
    ("-e",): "-e",
    ("-it\0",): "",
}


@pytest.mark.parametrize("options", DOCKER, ids=lambda options: " ".join(options).replace("\0", "NUL"))
def test_a_bad_option_of_docker_run(node, options):
    found = problem(node.request("POST", TASKS, container(*options)), 400, "invalid-docker-option")
    assert DOCKER[options] in f"{found['detail']} {found['hint']}"
    original = {
        "ServiceName": "x",
        "ServiceInfo": [
            {
                "ExecutionType": "container",
                "ExecCmd": ["docker", "run", *options, *(["x"] * ("-e" not in options))],
            }
        ],
    }
    status, body = node.request("POST", "/api/v1/orchestration/services", original)
    assert (status, json.loads(body)["Message"]) == (200, "INVALID_PARAMETER")


def test_requests_that_miss(node):
    known = node.submit("true")["id"]
    ghost = known[:5] + ("0" if known[5] != "0" else "1") + known[6:]
    for path in (ghost, f"{ghost}/output", f"{ghost}/events"):
        problem(node.request("GET", f"{TASKS}/{path}"), 404, "not-found")
    problem(node.request("DELETE", f"{TASKS}/{ghost}"), 404, "not-found")
    for nonsense in ("nonsense", "%00", "..%2f..%2fetc", "%ff", "x" * 3000):
        status, body = node.request("GET", f"{TASKS}/{nonsense}")
        assert status in (400, 404), body
        assert json.loads(body)["status"] == status
    problem(node.request("GET", f"{TASKS}/{known}/output?attempt=9"), 404, "not-found")
    problem(node.request("GET", f"{TASKS}/{known}/output?strem=stdout"), 400, "invalid-request")
    problem(node.request("GET", f"{TASKS}?limit=many"), 400, "invalid-request")
    problem(node.request("GET", "/api/v1/nodes/nobody"), 404, "not-found")
    problem(node.request("POST", "/api/v1/nodes/nobody/drain"), 404, "not-found")
    problem(node.request("GET", "/api/v2/tasks"), 404, "not-found")
    problem(node.request("PUT", TASKS, spec()), 405, "method-not-allowed")
    problem(
        node.request("POST", TASKS, spec(), **{"Content-Type": "text/plain"}), 415, "unsupported-media-type"
    )
    node.ended({"id": known})


def test_a_body_of_two_mebibytes(node):
    found = problem(node.request("POST", TASKS, BIG), 413, "too-large")
    assert "api.max_body" in found["detail"]
    # Without Content-Length: chunks, until the node has had enough.
    with contextlib.closing(node.connection()) as connection:
        connection.putrequest("POST", TASKS)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(BIG), 65_536):
                part = BIG[start : start + 65_536]
                connection.send(b"%x\r\n%b\r\n" % (len(part), part))
            connection.send(b"0\r\n\r\n")
        answer = connection.getresponse()
        problem((answer.status, answer.read()), 413, "too-large")


def test_a_missing_program(node):
    done = node.ended(node.submit("no-such-program-anywhere"))
    assert done["state"] == "failed"
    assert "no-such-program-anywhere" in done["reason"]
    done = node.ended(node.submit("/no/such/program"))
    assert (done["state"], "/no/such/program" in done["reason"]) == ("failed", True)


def test_a_program_without_permission(node, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\ntrue\n")
    done = node.ended(node.submit(str(program)))
    assert (done["state"], str(program) in done["reason"]) == ("failed", True), done
    assert "permi" in done["reason"].lower()
    done = node.ended(node.submit(str(tmp_path)))
    assert (done["state"], str(tmp_path) in done["reason"]) == ("failed", True), done
    program.write_text("no program at all\0")
    program.chmod(0o755)
    done = node.ended(node.submit(str(program)))
    assert (done["state"], str(program) in done["reason"]) == ("failed", True), done


@pytest.mark.parametrize(
    "argv", [["echo", "a\0b"], ["a\0b"], [""], ["x" * 60_000] * 10], ids=lambda a: a[0][:8]
)
def test_an_argv_that_no_system_takes(node, argv):
    status, body = node.request("POST", TASKS, native(argv=argv))
    if status == 202:
        done = node.ended(json.loads(body))
        assert done["reason"] or done["state"] == "succeeded", done
    else:
        assert status in (400, 413)
        assert json.loads(body)["status"] == status


def test_an_environment_that_no_system_takes(node):
    for env in ({"A=B": "x"}, {"A\0": "x"}, {"A": "x\0"}):
        problem(node.request("POST", TASKS, native(env=env)), 400, "invalid-request")


@pytest.mark.docker
def test_a_missing_image(node):
    body = spec(service=[{"driver": "container", "image": "127.0.0.1:9/no/such:image"}])
    eventually(lambda: "container" in node.get("/api/v1/nodes/self")["drivers"], "the container driver works")
    status, answer = node.request("POST", TASKS, body)
    assert status == 202, answer
    done = node.ended(json.loads(answer))
    assert done["state"] == "failed"
    assert "127.0.0.1:9/no/such:image" in done["reason"]


# A node that cannot start says so in one sentence.


@pytest.fixture
def fleet(tmp_path):
    made = RealFleet(tmp_path, "kitchen", "garage")
    yield made
    made.close()


def start_fails(node, code, *mentioned, extra=""):
    node.write_config(extra)
    done = subprocess.run(node.command(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    # What the log says before is dated; the sentence and its hint come last.
    said = [line for line in done.stderr.splitlines() if not line[:4].isdigit()]
    assert 1 <= len(said) <= 2, done.stderr
    assert said[0].startswith("edgeorch: ")
    for text in mentioned:
        assert text in " ".join(said)


def test_a_typo_in_the_configuration(fleet):
    node = fleet.nodes["kitchen"]
    start_fails(
        node, 78, "edgeorch.toml", "'slotss'", "did you mean 'slots'?", extra="[executor]\nslotss=3\n"
    )
    start_fails(node, 78, "'exeuctor'", "did you mean 'executor'?", extra="[exeuctor]\nslots=3\n")
    start_fails(node, 78, "executor.slots", "Expected `int`", extra='[executor]\nslots="3"\n')
    start_fails(node, 78, "lease.renew_s", extra="[lease]\nrenew_s=9\n")
    start_fails(node, 78, "not valid TOML", "line", extra="[executor\n")


def test_key_files_that_cannot_be_used(fleet):
    node = fleet.nodes["kitchen"]
    for file, bad in (
        ("node.key", b"garbage\xff\n"),
        ("node.pem", b"-----BEGIN CERTIFICATE-----\n"),
        ("ca.pem", b""),
    ):
        path = node.folder / "pki" / file
        good = path.read_bytes()
        path.write_bytes(bad)
        start_fails(node, 78, str(path))
        path.write_bytes(good)
    path = node.folder / "pki" / "node.key"
    path.unlink()
    start_fails(node, 78, str(path), "No such file")
    path.mkdir()
    start_fails(node, 78, str(path))


def test_a_reload_of_bad_files_keeps_the_old_ones(fleet):
    (node,) = fleet.start("kitchen")
    (node.folder / "pki" / "node.key").write_bytes(b"garbage")
    (node.folder / "tokens.toml").write_bytes(b"[[token]]\nname = 7\n")
    node.reload()
    eventually(lambda: node.log().count("kept the old ones") == 2, "it says that it kept both")
    assert node.ended(node.submit("true"))["state"] == "succeeded"
    assert "Traceback" not in node.log()


def test_a_revocation_list_that_cannot_be_used(fleet):
    node = fleet.nodes["kitchen"]
    path = node.folder / "pki" / "crl.pem"
    path.write_bytes(b"garbage")
    start_fails(node, 78, str(path))


def test_keys_that_do_not_fit_each_other(fleet, tmp_path):
    kitchen, garage = fleet.nodes["kitchen"], fleet.nodes["garage"]
    other = RealFleet(tmp_path / "other", "kitchen").nodes["kitchen"]
    shutil.copy(other.folder / "pki" / "ca.pem", kitchen.folder / "pki" / "ca.pem")
    (kitchen.folder / "pki" / "crl.pem").unlink()
    start_fails(kitchen, 78, "node.pem", "is not from the CA")
    pki = garage.folder / "pki"
    key = (pki / "node.key").read_bytes()
    shutil.copy(other.folder / "pki" / "node.key", pki / "node.key")
    start_fails(garage, 78, "is not the key of")
    (pki / "node.key").write_bytes(key)
    (garage.folder / "node_id").write_text("0123456789\n")
    start_fails(garage, 78, "0123456789", "node_id")
    (garage.folder / "node_id").write_text("not an id\n")
    start_fails(garage, 78, "not an id")


def test_an_expired_certificate(fleet):
    """Where nothing keeps the clock, it may be the clock that is wrong."""
    node = fleet.nodes["kitchen"]
    node.issue_at(-1000)
    if clock_synchronised():
        start_fails(node, 78, "node.pem", "expired")
        return
    node.start()
    status, body = node.request("GET", "/readyz")
    assert status == 503
    assert b'"certificate"' in body
    assert "expired at" in node.log()
    node.issue_at(0)
    node.reload()
    eventually(lambda: node.request("GET", "/readyz")[0] == 200, "it is ready with the new one")
    node.stop()


def test_ports_in_use(fleet):
    node = fleet.nodes["kitchen"]
    for port, key in ((fleet.api, "api.port"), (fleet.wire, "wire.port")):
        with socket.create_server((node.host, port)):
            start_fails(node, 1, str(port), node.host, "in use", key)
    node.start()


def test_an_address_of_somebody_else(fleet):
    node = fleet.nodes["kitchen"]
    node.host = "203.0.113.9"
    start_fails(node, 1, "203.0.113.9", "node.listen")


def test_a_state_folder_that_cannot_be_used(fleet):
    node = fleet.nodes["kitchen"]
    state = node.folder / "state"
    state.write_text("a file")
    start_fails(node, 1, str(state), "node.state_dir")


@pytest.mark.root
def test_a_read_only_state_folder(fleet):
    state = fleet.nodes["kitchen"].folder / "state"
    with mounted(state, "ro,size=1m"):
        start_fails(fleet.nodes["kitchen"], 1, str(state), "node.state_dir")


def test_a_second_node_on_the_same_state_folder(fleet):
    (kitchen,) = fleet.start("kitchen")
    garage = fleet.nodes["garage"]
    (garage.folder / "state").symlink_to(kitchen.folder / "state")
    start_fails(garage, 1, "another node uses", "node.state_dir")
    assert kitchen.ended(kitchen.submit("true"))["state"] == "succeeded"


@pytest.mark.root
def test_a_full_disk(fleet, tmp_path):
    node = fleet.nodes["kitchen"]
    ballast, sign = node.folder / "state" / "ballast", tmp_path / "sign"
    with mounted(node.folder / "state", "size=4m"):
        try:
            node.start()
            task = node.submit("sh", "-c", f"until [ -e {sign} ]; do sleep 0.1; done; echo late")
            eventually(lambda: node.get(f"{TASKS}/{task['id']}")["state"] == "running", "its start on disk")
            full = eventually(lambda: (a := post_on_full(node, ballast))[0] != 202 and a, "a refusal")
            found = problem(full, 507, "insufficient-storage")
            assert found["hint"]
            # A small commit may still fit after a larger one did not, and the node is then ready again.
            eventually(lambda: post_on_full(node, ballast)[0] == 507 and not_ready(node), "not ready")
            assert node.get(f"{TASKS}/{task['id']}")["state"] == "running"
            problem(post_on_full(node, ballast, [spec()] * 3), 507, "insufficient-storage")
            ballast.unlink()
            again = eventually(lambda: (a := node.request("POST", TASKS, spec()))[0] == 202 and a, "room")
            assert node.ended(json.loads(again[1]))["state"] == "succeeded"
            assert node.request("GET", "/readyz")[0] == 200
            sign.touch()
            for one in node.get(f"{TASKS}?limit=1000")["tasks"]:
                assert node.ended(one)["state"] == "succeeded"
            assert node.request("GET", f"{TASKS}/{task['id']}/output") == (200, b"late\n")
            assert "Traceback" not in node.log()
        finally:
            fleet.close()


def not_ready(node):
    status, body = node.request("GET", "/readyz")
    return status == 503 and json.loads(body)["status"] == 503


@contextlib.contextmanager
def mounted(folder, options):
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


def post_on_full(node, ballast, body=None):
    """POST when every byte is taken; what the node gives back in between is taken too."""
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return node.request("POST", TASKS, body or spec())
