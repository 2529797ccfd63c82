"""Installing on hosts that have nothing: offline, from an index, again, and after what goes wrong."""

import contextlib
import functools
import http.server
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from controller import PLAYBOOKS
from next_release import copy_of_checkout, wheel_of

from edgeorch import __version__

TAGS = ("--tags", "preflight,install")
ROOT = "/opt/edgeorch"
NAME = f"{__version__}-py311"


@pytest.fixture(scope="module")
def one(module_hosts):
    """A controller with one bare host, for these tests in their order."""
    return module_hosts(1)


def listing(controller, name="n1"):
    """What is in the folder of the installed versions."""
    return controller.hosts.run(name, f"ls -A {ROOT}", check=False).stdout.split()


def says(controller, name="n1"):
    return controller.hosts.run(name, "edgeorch --version", check=False).stdout.strip()


def test_from_nothing_again_and_repaired(one):
    look = one.play("deploy", *TAGS, "--check", "--diff")
    assert look.recap["n1"]["failed"] == 0
    assert listing(one) == []
    assert not (one.folder / ".edgeorch").exists()

    one.play("deploy", *TAGS)
    assert says(one) == f"edgeorch {__version__}"
    assert sorted(listing(one)) == [NAME, "current", "staged"]
    # The archive is gone with its work done, and nothing names the folder it was made in.
    assert one.hosts.run("n1", f"ls -A {ROOT}/staged").stdout == ""
    assert one.hosts.run("n1", f"grep -rlI '{NAME}.new' {ROOT}", check=False).stdout == ""
    assert one.hosts.run("n1", "stat -c %U:%a /opt/edgeorch/current/").stdout.strip() == "root:755"
    assert (one.state.parent / ".gitignore").read_text() == "*\n"

    again = one.play("deploy", *TAGS)
    assert again.changed == 0

    # A run that was cut off has left a half, and the system's Python is another since.
    one.hosts.run("n1", f"mkdir {ROOT}/{NAME}.new && touch {ROOT}/{NAME}.new/pyvenv.cfg")
    one.hosts.run("n1", f"ln -sfn /usr/bin/python3.9 {ROOT}/{NAME}/bin/python3")
    assert says(one) == ""
    one.play("deploy", *TAGS)
    assert says(one) == f"edgeorch {__version__}"
    assert sorted(listing(one)) == [NAME, "current", "staged"]


def test_the_version_before_stays(one, tmp_path):
    for release in ("0.900.0", "0.901.0"):
        wheel = wheel_of(copy_of_checkout(tmp_path / release, release))
        one.play("deploy", *TAGS, "-e", f"edgeorch_wheel={wheel}")
    assert says(one) == "edgeorch 0.901.0"
    assert sorted(listing(one)) == ["0.900.0-py311", "0.901.0-py311", "current", "previous", "staged"]

    play = one.play("deploy", *TAGS, "-e", f"edgeorch_wheel={tmp_path}/none.whl", check=False)
    assert play.failures["n1"] == f"edgeorch_wheel: {tmp_path}/none.whl does not exist on the controller"


def test_from_an_index_of_ones_own(one):
    one.hosts.add(1)
    (wheels,) = (one.state / "dist").glob("wheels-py311-*")
    gateway = str(next(one.hosts.subnet.hosts()))
    online = ("--limit", "n2", "-e", "edgeorch_offline=false")
    with index(gateway, wheels) as (address, asked):
        arguments = f'{{"edgeorch_pip_args": ["--index-url", "{address}", "--trusted-host", "{gateway}"]}}'
        one.play("deploy", *TAGS, *online, "-e", arguments)
        assert says(one, "n2") == f"edgeorch {__version__}"
        assert any("/trio/" in path for path in asked)

    one.hosts.run("n2", f"rm -r {ROOT}/{NAME}")
    play = one.play("deploy", *TAGS, *online, "-e", arguments, check=False)
    assert "the package index cannot be reached" in play.failures["n2"]
    assert "edgeorch_pip_args" in play.failures["n2"]
    assert NAME not in listing(one, "n2")


def test_an_archive_for_boards_of_another_architecture_has_every_dependency(tmp_path):
    """No such board is here; what pip would find for it on the index is."""
    ansible = Path(sys.executable).with_name("ansible")
    if not ansible.exists():
        pytest.skip("no ansible beside this Python: pip install -e '.[dev]'")
    locks = PLAYBOOKS / "locks"
    board = {"python_tag": "py311", "platform": "linux-aarch64", "offline": True}
    wish = {"source": str(PLAYBOOKS.parent), "locks": str(locks), "targets": [board]}
    wish |= {"home": str(tmp_path / "home"), "folder": str(tmp_path / "home/dist")}
    ours = {"ANSIBLE_LIBRARY": PLAYBOOKS / "library", "ANSIBLE_MODULE_UTILS": PLAYBOOKS / "module_utils"}
    argv = [ansible, "localhost", "-m", "edgeorch_bundle", "-a", json.dumps(wish)]
    done = subprocess.run(argv, env=os.environ | ours, capture_output=True, text=True, check=False)
    if "the package index has no wheel of" in done.stdout:
        pytest.skip("the package index here has no wheels for aarch64")
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = (tmp_path / "home/dist").glob("*.tar")
    with tarfile.open(made) as archive:
        names = archive.getnames()
    kinds = {name.rpartition("-")[2] for name in names if name.endswith(".whl")}
    assert any("aarch64" in kind for kind in kinds)
    assert not any("x86_64" in kind for kind in kinds)
    pinned = set(re.findall(r"^([\w.-]+)==", (locks / "py311.txt").read_text(), re.MULTILINE))
    packed = {re.sub(r"[-_.]+", "-", name.split("-")[0]).lower() for name in names}
    assert pinned | {"edgeorch", "pip"} == packed - {"requirements-txt"}


@contextlib.contextmanager
def index(host, wheels):
    """Serve a folder of wheels as a package index (PEP 503); yield its address and what was asked for."""
    asked = []

    class Pages(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            page = re.fullmatch(r"/simple/([a-z0-9-]+)/", self.path)
            if not page:
                super().do_GET()
                return
            names = [path.name for path in wheels.glob("*.whl")]
            own = [one for one in names if re.sub(r"[-_.]+", "-", one.split("-")[0]).lower() == page[1]]
            body = "".join(f'<a href="/{one}">{one}</a>' for one in own).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer((host, 0), functools.partial(Pages, directory=str(wheels)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}/simple", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
