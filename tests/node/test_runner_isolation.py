"""Services that Landlock keeps apart: a real runner, real services, the kernel of this machine."""

import contextlib
import os
import sys
from pathlib import Path

import pytest
from real_runner import Runner

from edgeorch.runner import protocol
from edgeorch.runner.landlock import Landlock

MISSING = Landlock([Path("/tmp")]).missing
SIGNALS_SINCE = 6

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(bool(MISSING), reason=MISSING or "there is Landlock"),
]


def abi():
    return Landlock([Path("/tmp")]).abi


class Services:
    """Starts Python code as a service and tells its exit code and what it wrote."""

    def __init__(self, client):
        self.client = client
        self.welcome = client.receive()
        self.ended = {}
        self.folders = {}

    def start(self, key, code, *arguments):
        argv = (sys.executable, "-ISc", code, *map(str, arguments))
        self.client.send(protocol.Start(id=1, key=key, argv=argv, env={}, output_max=10_000))
        while not isinstance(answer := self.client.receive(), protocol.Started):
            assert isinstance(answer, protocol.Exited), answer
            self.ended[answer.key] = answer.ended
        self.folders[key] = Path(answer.folder)
        return self.folders[key] / "work"

    def end(self, key):
        while key not in self.ended:
            answer = self.client.receive()
            self.ended[answer.key] = answer.ended
        return self.ended[key].exit_code, self.errors(key)

    def errors(self, key):
        path = self.folders[key] / "stderr"
        return path.read_text() if path.exists() else ""

    def run(self, key, code, *arguments):
        self.start(key, code, *arguments)
        return self.end(key)


@pytest.fixture
def services(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    runner = Runner(state, "--close", str(state))
    client = runner.connect()
    yield Services(client)
    client.sock.close()
    runner.end()


@pytest.fixture
def other(services, tmp_path):
    """The work folder of a service that runs, with a secret in it."""
    os.mkfifo(tmp_path / "up")
    code = (
        "import signal; open('secret', 'w').write('x'); print('x', flush=True)\n"
        f"open({str(tmp_path / 'up')!r}, 'w'); signal.pause()"
    )
    work = services.start("other.1", code)
    (tmp_path / "up").read_text()
    # Answered at the end of a round, and what was printed before was seen in this one at the latest.
    services.client.send(protocol.List(id=2))
    services.client.receive()
    assert (work.parent / "stdout").read_text() == "x\n"
    return work


def test_the_runner_says_that_services_are_kept_apart(services):
    assert services.welcome.isolation == "landlock"


@pytest.mark.parametrize(
    "code",
    [
        "open(f'{path}/secret').read()",
        "open(f'{path}/secret', 'a')",
        "open(f'{path}/planted', 'w')",
        "os.unlink(f'{path}/secret')",
        "os.mkdir(f'{path}/planted')",
        "os.link(f'{path}/secret', 'mine')",
        "os.rename(f'{path}/secret', 'mine')",
        "os.symlink('/', f'{path}/planted')",
        "os.unlink(f'{path}/../stdout')",
        "open(f'{path}/../../../runner.sock', 'a')",
        "os.unlink(f'{path}/../../../runner.sock')",
        "os.rmdir('../work')",
        "open('../stdout', 'w')",
        "open('../exit', 'w')",
    ],
)
def test_a_service_is_kept_out_of_the_folders_of_others(services, other, code):
    exit_code, errors = services.run("me.1", f"import os, sys; path = sys.argv[1]; {code}", other)
    assert exit_code == 1
    assert "PermissionError" in errors or "Invalid cross-device link" in errors, errors
    assert (other / "secret").read_text() == "x"
    assert sorted(path.name for path in other.iterdir()) == ["secret"]


FREE = """
import os, subprocess, sys, tempfile
os.makedirs("a/b")
open("a/b/c", "w").write("x")
os.rename("a/b/c", "a/d")
os.link("a/d", "e")
os.symlink("e", "f")
assert open("f").read() == "x"
os.unlink("e")
for folder in ("/", "/etc", sys.argv[1], os.path.dirname(sys.argv[1])):
    os.listdir(folder)
assert open("/etc/passwd").read()
open("/dev/null", "w").write("x")
with tempfile.NamedTemporaryFile("w", dir=sys.argv[1]) as file:
    file.write("x")
child = subprocess.Popen(["sleep", "1000"])
child.terminate()
child.wait()
subprocess.run(["sh", "-c", "ls / > list && cat list"], check=True)
"""


def test_a_service_may_do_everything_else(services, tmp_path):
    (tmp_path / "free").mkdir()
    assert services.run("me.1", FREE, tmp_path / "free") == (0, "")


def test_a_folder_that_is_made_later_is_there_for_the_next_service(services, tmp_path):
    assert services.run("first.1", "pass") == (0, "")
    (tmp_path / "new").mkdir()
    (tmp_path / "new/file").write_text("x")
    assert services.run("me.1", "import sys; open(sys.argv[1]).read()", tmp_path / "new/file") == (0, "")


@pytest.mark.parametrize("who", ["runner", "other"])
def test_a_service_cannot_trace_the_runner_or_another_service(services, other, who):
    pid = services.welcome.pid if who == "runner" else pid_of(other)
    code = "import sys; open(f'/proc/{sys.argv[1]}/mem', 'rb')"
    exit_code, errors = services.run("me.1", code, pid)
    assert exit_code == 1
    assert "PermissionError" in errors
    attach = "import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(16, int(sys.argv[1]), 0, 0) + 1)"
    assert services.run("me.2", attach, pid) == (0, "")


@pytest.mark.skipif(
    not MISSING and abi() < SIGNALS_SINCE, reason="Landlock keeps signals in from Linux 6.12 on"
)
@pytest.mark.parametrize("who", ["runner", "other"])
def test_a_service_cannot_signal_the_runner_or_another_service(services, other, who):
    pid = services.welcome.pid if who == "runner" else pid_of(other)
    exit_code, errors = services.run("me.1", "import os, sys; os.kill(int(sys.argv[1]), 9)", pid)
    assert exit_code == 1
    assert "PermissionError" in errors


def pid_of(work):
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").readlink() == work.resolve():
                return int(entry.name)
    raise AssertionError(work)
