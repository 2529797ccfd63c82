"""A node whose power is cut: what was answered with 202 is on the disk.

The node runs under strace, which records what it writes, syncs and answers. For any moment of that record the
disk is then made as it could have been left by a power cut: writes that were synced are there; of the others
none, all or any, in pieces of a sector.
"""

import random
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass, field, replace

import pytest
import trio
from real_fleet import RealFleet

from edgeorch.store.sqlite import SqliteStore

CALLS = "openat,pwrite64,write,ftruncate,fsync,fdatasync,unlink,unlinkat,rename,sendto,close"
LINE = re.compile(r"^(\d+) +(.*)$")
CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+)")
ACCEPTED = "".join(f"\\x{byte:02x}" for byte in b"HTTP/1.1 202")
TASKS = 60
CUTS = 40
SECTOR = 512

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="records system calls: install strace")


@dataclass
class File:
    """What was done to one file, in order; ``synced`` is how much of it a cut cannot undo."""

    operations: list = field(default_factory=list)
    synced: int = 0
    listed: bool = False
    """Whether its folder was synced after it was made."""


def calls(path):
    """(name, arguments, result, begun, ended) of each call by its end; the last two are line numbers."""
    open_calls = {}
    with path.open() as lines:
        for number, line in enumerate(lines):
            tid, text = LINE.match(line).groups()
            if text.endswith("<unfinished ...>"):
                open_calls[tid] = (number, text.removesuffix("<unfinished ...>"))
                continue
            begun = number
            if resumed := re.match(r"<\.\.\. \w+ resumed>(.*)$", text):
                begun, start = open_calls.pop(tid)
                text = start + resumed[1]
            if found := CALL.match(text):
                yield found[1], found[2], int(found[3]), begun, number


def text_of(hexes):
    """The bytes of a string that strace has printed with -xx."""
    return bytes.fromhex(hexes.replace("\\x", ""))


STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
FD = re.compile(r"^(\d+)<([^>]*)>")


def path_of(arguments):
    """The path behind the file descriptor that is the first argument."""
    found = FD.match(arguments)
    name = found[2] if found else ""
    return text_of(name).decode() if name.startswith("\\x") else name


def steps(record, folder):
    """(begun, ended, what, path, more) of each call that matters, and of each 202, in order."""
    for name, arguments, result, begun, ended in calls(record):
        if name in {"write", "sendto"} and ACCEPTED in arguments:
            yield begun, ended, "answer", "", None
            continue
        if result < 0 or name == "sendto":
            continue
        if name in {"openat", "unlink", "unlinkat", "rename"}:
            path, *new = (text_of(found).decode() for found in STRING.findall(arguments))
            name = "create" if "O_CREAT" in arguments else name  # noqa: PLW2901  openat that may make a file
            more = new
        else:
            path, more = path_of(arguments), None
            if name == "pwrite64":
                more = int(arguments.rsplit(", ", 1)[1]), text_of(STRING.search(arguments)[1])
            elif name == "ftruncate":
                more = int(arguments.rsplit(", ", 1)[1]), None
        if path.startswith(folder):
            yield begun, ended, "sync" if name in {"fsync", "fdatasync"} else name, path, more


class Disk:
    """Replays a record up to any moment."""

    def __init__(self, record, folder):
        self.folder = str(folder)
        self.steps = list(steps(record, self.folder))
        self.answers = [begun for begun, _, what, *_ in self.steps if what == "answer"]

    def until(self, moment):
        """Files by name as of the calls that had ended before this line."""
        files = {}
        for begun, ended, what, path, more in self.steps:
            if ended >= moment:
                break
            file = files.get(path)
            if what == "create":
                files.setdefault(path, File())
            elif what == "sync" and path == self.folder:
                for each in files.values():
                    each.listed = True
            elif file is None:
                continue
            elif what in {"unlink", "unlinkat", "rename"}:
                del files[path]
                # Until the folder is synced, neither name can be relied on.
                files |= {new: replace(file, listed=False) for new in more}
            elif what in {"pwrite64", "ftruncate"}:
                file.operations.append((ended, *more))
            elif what == "sync":
                file.synced = sum(when < begun for when, *_ in file.operations)
        return files


def leave(files, source, target, rng):
    """Write the files as the cut may have left them; ``rng`` says what else had reached the disk."""
    target.mkdir()
    for path, file in files.items():
        if not path.startswith(f"{source}/edgeorch.db") or path.endswith("-shm"):
            continue  # shared memory is made anew
        if not file.listed and rng.random() < 0.5:
            continue
        with (target / path.rpartition("/")[2]).open("w+b") as image:
            for number, (_, offset, data) in enumerate(file.operations):
                kept = number < file.synced
                if data is None:
                    if kept or rng.random() < 0.5:
                        image.truncate(offset)
                    continue
                for start in range(0, len(data), SECTOR):
                    if kept or rng.random() < 0.5:
                        image.seek(offset + start)
                        image.write(data[start : start + SECTOR])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A node's record, its state folder, and the ids that it had answered with 202, in order."""
    folder = tmp_path_factory.mktemp("power")
    record = folder / "record"
    fleet = RealFleet(folder, "one")
    node = fleet.nodes["one"]
    plain = node.command()
    node.command = lambda: [
        *("strace", "-f", "-y", "-xx", "-s", "1000000", "-o", str(record), "-e", f"trace={CALLS}"),
        *plain,
    ]
    try:
        node.start()
        ids = [node.submit("true", metadata={"filling": "x" * 20_000})["id"] for _ in range(TASKS)]
        # strace passes the signal on to nobody: the node is its child.
        daemon = int(subprocess.check_output(["pgrep", "-P", str(node.process.pid)]).split()[0])
        subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(daemon)], check=True)
        node.kill_runner()
        node.process.wait(30)
    finally:
        node.kill_runner()
        node.process.kill()
        node.process.wait()
    return Disk(record, node.folder / "state"), node.folder / "state", ids


async def test_what_was_answered_survives_a_power_cut(recorded, tmp_path):
    disk, state, ids = recorded
    assert len(disk.answers) == TASKS
    rng = random.Random(1)
    for cut in range(CUTS):
        answered = rng.randrange(TASKS) + 1
        # At the moment when an answer leaves, or anywhere up to the next one.
        first = disk.answers[answered - 1]
        last = disk.answers[answered] if answered < TASKS else first + 1
        moment = first if cut % 2 else rng.randrange(first, last)
        image = tmp_path / str(cut)
        leave(disk.until(moment), state, image, rng)
        store = SqliteStore(image / "edgeorch.db")
        async with trio.open_nursery() as nursery:
            await nursery.start(store.serve)
            assert store.set_aside is None, "the database was damaged"
            for task_id in ids[:answered]:
                assert await store.task(task_id), f"{task_id} was answered with 202 and is lost"
            nursery.cancel_scope.cancel()
        shutil.rmtree(image)
