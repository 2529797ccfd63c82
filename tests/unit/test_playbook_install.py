"""The parts of the modules that install and look, without a host."""

import importlib.util
import json
import re
import shutil
import struct
import sys
import tarfile
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("ansible.module_utils.basic", reason="no ansible-core: pip install -e '.[dev]'")

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PLAYBOOKS = ROOT / "playbooks"
TAGS = ("py311", "py312", "py313", "py314")


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, PLAYBOOKS / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pip = sys.modules["ansible.module_utils.edgeorch_pip"] = load("module_utils/edgeorch_pip.py", "edgeorch_pip")
bundle = load("library/edgeorch_bundle.py", "edgeorch_bundle")
venv = load("library/edgeorch_venv.py", "edgeorch_venv")
preflight = load("library/edgeorch_preflight.py", "edgeorch_preflight")
clones = load("library/edgeorch_clones.py", "edgeorch_clones")


def pins(tag):
    text = (PLAYBOOKS / "locks" / f"{tag}.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)), text


@pytest.mark.parametrize("tag", TAGS)
def test_a_lock_has_what_the_project_asks_for(tag):
    pinned, text = pins(tag)
    environment = {"python_version": f"3.{tag[3:]}", "python_full_version": f"3.{tag[3:]}.0"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate(environment):
            assert pinned[wanted.name] in wanted.specifier, f"make lock: {line} is not {pinned[wanted.name]}"
    # pip would weigh a marker for the controller's own Python; an index belongs to whoever installs.
    assert ";" not in text
    assert "://" not in text
    assert text.count("--hash=sha256:") >= len(pinned)


def test_the_locks_know_what_runs_here():
    """What the tests ran with is near what hosts get: the same packages, none newer in its first number."""
    pinned, _ = pins(f"py{sys.version_info[0]}{sys.version_info[1]}")
    for name, pin in pinned.items():
        assert version(name).split(".")[0] == pin.split(".")[0], name


def test_platform_tags():
    tags = bundle.platform_tags("linux-x86_64")
    assert tags[0] == "manylinux_2_28_x86_64"
    assert tags[-1] == "linux_x86_64"
    assert "manylinux2014_x86_64" in tags
    assert "manylinux_2_17_aarch64" in bundle.platform_tags("linux-aarch64")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            (
                "ERROR: Could not find a version that satisfies the requirement trio==9\n"
                "ERROR: No matching distribution found for trio==9"
            ),
            "the package index has no wheel of trio==9 for a Pi: name an index",
        ),
        (
            (
                "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n"
                "ERROR: No matching distribution found for trio==9"
            ),
            "the package index cannot be reached for trio==9: check the network",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "no space left for /x: ",
        ),
        ("python: No module named pip", "this machine's Python has no pip: install it"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
            "the package index gives a file that is not the one in the lock",
        ),
        ("a\nERROR: it broke.\n", "pip failed: it broke"),
        (
            "edgeorch 9 requires foo, which is not installed.\n",
            "pip failed: edgeorch 9 requires foo, which is",
        ),
        ("", "pip failed: it failed without a word"),
    ],
)
def test_what_pip_says_as_a_sentence(said, sentence):
    assert pip.complaint(said, "/x", "a Pi").startswith(sentence)


# A Python that will do; each case below changes something.
FIT = {
    "python": "/usr/bin/python3",
    "version": [3, 11],
    "platform": "linux-x86_64",
    "bits": 64,
    "kind": "CPython",
    "free_threaded": False,
    "libc": "glibc 2.36",
    "missing": [],
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, ""),
        ({"version": [3, 14], "platform": "linux-aarch64", "libc": "glibc 2.28"}, ""),
        ({"version": [3, 10]}, "its Python is 3.10 and edgeorch needs 3.11 or newer: .* edgeorch_python"),
        ({"version": [3, 15]}, r"its Python is 3.15, newer than edgeorch is tested with \(3.14\): "),
        ({"bits": 32, "platform": "linux-armv7l"}, r"its system is 32-bit \(linux-armv7l\) .* 64-bit image"),
        ({"bits": 32, "version": [3, 9]}, "its system is 32-bit"),
        ({"kind": "PyPy"}, "/usr/bin/python3 is not the usual CPython"),
        ({"free_threaded": True}, "/usr/bin/python3 is not the usual CPython"),
        ({"missing": ["venv", "ssl"]}, "its Python 3.11 lacks the modules venv, ssl: install"),
        ({"libc": "glibc 2.27"}, "its C library is glibc 2.27 and edgeorch needs glibc 2.28"),
        ({"libc": None}, "its C library is not glibc"),
    ],
)
def test_which_python_will_do(change, sentence):
    said = preflight.unfit(FIT | change)
    assert re.match(sentence, said) if sentence else said == ""


def test_what_a_python_says_of_itself():
    found = preflight.ask(sys.executable)
    assert found["version"] == list(sys.version_info[:2])
    assert found["bits"] == struct.calcsize("P") * 8
    assert found["missing"] == []
    assert preflight.ask("/does/not/exist") is None


def test_no_python_at_all():
    assert "edgeorch_python is /does/not/exist" in preflight.find_python("/does/not/exist")[1]


@pytest.mark.parametrize(
    ("offset", "words"),
    [(3600, "60 min ahead of"), (-86_400, "24 h behind"), (-400.5, "7 min behind")],
)
def test_how_wrong_a_clock_is(offset, words):
    assert f"its clock is {words} the controller's" in preflight.clock(offset)


MOUNTS = """\
1 0 0:1 / / rw - {root} none rw,lowerdir=/l,upperdir={upper}/diff,workdir=/w
2 1 0:2 / /tmp rw - tmpfs tmpfs rw
3 1 8:1 / /srv/data rw shared:1 - ext4 /dev/sda1 rw
4 1 0:3 / /srv rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("folder", "root", "upper", "kind"),
    [
        ("/var/lib/edgeorch", "overlay", "/media/root-rw", "overlay"),
        ("/var/lib/edgeorch", "overlay", "/var/lib/docker/overlay2/1a", ""),
        ("/var/lib/edgeorch", "ext4", "/", ""),
        ("/tmp/x", "ext4", "/", "tmpfs"),
        ("/srv/data/x", "ext4", "/", ""),
        ("/srv/database", "ext4", "/", "tmpfs"),
    ],
)
def test_a_state_folder_that_a_restart_empties(monkeypatch, folder, root, upper, kind):
    monkeypatch.setattr(preflight, "existing", lambda path: path)
    monkeypatch.setattr(preflight, "text", lambda _: MOUNTS.format(root=root, upper=upper))
    said = preflight.volatile(folder)
    assert said == [] if not kind else f"{folder} is on {kind}, so a restart" in said[0]


def test_a_ca_that_is_not_ours(monkeypatch):
    ours, theirs = (
        f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n" for body in ("AAAA", "BBBB")
    )
    there = {}
    monkeypatch.setattr(preflight, "text", lambda path: there.get(path, ""))
    assert preflight.other_ca(ours) == []
    there["/etc/edgeorch/pki/ca.pem"] = theirs
    assert "a certificate of another CA" in preflight.other_ca(ours)[0]
    # While the CA is being replaced the controller trusts both.
    assert preflight.other_ca(ours + theirs) == []
    assert preflight.other_ca("") == []


def host(name, **other):
    own = {kind: f"{kind} of {name}" for kind in clones.REMEDIES}
    return own | {"node_id": ""} | other


def test_hosts_that_are_not_copies():
    hosts = {name: host(name) for name in ("n1", "n2", "n3")}
    problems, known = clones.compare(hosts, {})
    assert problems == {}
    assert clones.compare(hosts, known) == ({}, known)


def test_the_later_of_two_new_copies_is_told():
    hosts = {"n1": host("n1"), "n2": host("n2", machine_id="machine_id of n1")}
    problems, known = clones.compare(hosts, {})
    assert list(problems) == ["n2"]
    assert problems["n2"][0].startswith(
        "it has the machine id machine_id of n1 of n1 (a copied disk?): run `rm"
    )
    assert list(known) == ["n1"]


def test_a_new_copy_of_a_known_host_is_told_though_it_comes_first():
    known = {"n2": host("n2", node_id="abc")}
    hosts = {"n1": host("n1", node_id="abc", host_key="host_key of n2"), "n2": host("n2", node_id="abc")}
    problems, after = clones.compare(hosts, known)
    assert [said.split(" of ")[0] for said in problems["n1"]] == [
        "it has the node id abc",
        "it has the SSH host key host_key",
    ]
    assert "n2" not in problems
    assert after == known


def test_a_copy_of_a_host_that_is_not_in_this_play():
    problems, after = clones.compare(
        {"n5": host("n5", hostname="raspberrypi")}, {"n1": host("n1", hostname="raspberrypi")}
    )
    assert "it has the host name raspberrypi of n1" in problems["n5"][0]
    assert list(after) == ["n1"]


def test_a_host_that_was_installed_anew():
    problems, after = clones.compare({"n1": host("n1", machine_id="another")}, {"n1": host("n1")})
    assert problems == {}
    assert after["n1"]["machine_id"] == "another"


@pytest.mark.parametrize(
    ("there", "is_it"),
    [
        ({}, True),
        ({"node_id": "abc"}, False),
        ({"machine_id": "another"}, False),
        ({"host_key": "another"}, False),
        ({"host_key": ""}, False),
        ({"name": "n2"}, False),
    ],
)
def test_a_machine_that_lost_its_node_id_is_known_again(there, is_it):
    known = {"n1": host("n1", node_id="abc")}
    assert clones.emptied({"n1": host("n1") | there, "n3": host("n3")}, known) == (["n1"] if is_it else [])
    assert clones.emptied({"n1": host("n1", host_key="")}, {"n1": host("n1", host_key="")}) == []


class Place:
    """A folder of environments, and archives without any wheel but a pip that fills them."""

    def __init__(self, folder):
        self.folder = folder

    def environment(self, name="0.1.0-py311", digest="d1", **other):
        params = {"folder": str(self.folder), "name": name, "digest": digest, "command": None, **other}
        return venv.Environment(params, check=other.get("check", False))

    def whole(self, name):
        path = self.folder / name
        path.mkdir()
        (path / "pyvenv.cfg").touch()
        (path / venv.MARKER).write_text(json.dumps({"digest": "d1"}))


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_switching_keeps_the_one_before(place):
    for name in ("a-py311", "b-py311", "c-py311"):
        place.whole(name)
        assert place.environment(name).put_in_force()[0]
        assert not place.environment(name).put_in_force()[0]
    left = sorted(path.name for path in place.folder.iterdir())
    # The third was put in force when the second was, so the first is nobody's.
    assert left == ["b-py311", "c-py311", "current", "previous"]
    assert (place.folder / "current").readlink() == Path("c-py311")
    assert (place.folder / "previous").readlink() == Path("b-py311")


def test_switching_keeps_what_an_upgrade_may_go_back_to(place):
    (place.folder / "upgrade.json").write_text('{"from": "a-py311", "to": "b-py311"}')
    for name in ("a-py311", "b-py311", "c-py311"):
        place.whole(name)
    place.environment("c-py311").put_in_force()
    assert sorted(path.name for path in place.folder.glob("*-py311")) == ["a-py311", "b-py311", "c-py311"]


def test_switching_in_check_mode_changes_nothing(place):
    place.whole("a-py311")
    place.whole("old-py311")
    assert place.environment("a-py311", check=True).put_in_force()[0]
    assert sorted(path.name for path in place.folder.iterdir()) == ["a-py311", "old-py311"]


def test_what_is_not_installed_is_not_put_in_force(place):
    with pytest.raises(venv.FailureError, match=r"0\.1\.0-py311 is not installed: run deploy\.yml"):
        place.environment().put_in_force()


def test_a_foreign_archive_is_refused_and_leaves_nothing(place, tmp_path):
    (tmp_path / "evil").mkdir()
    archive = tmp_path / "archive.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "evil", "../evil")
    environment = place.environment(python=sys.executable, archive=str(archive))
    with pytest.raises(venv.FailureError, match="is not an archive of edgeorch"):
        environment.install()
    shutil.rmtree(tmp_path / "evil")
    assert [path.name for path in tmp_path.iterdir()] == ["archive.tar"]
