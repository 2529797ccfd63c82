import os
import random
import shutil

import pytest

from edgeorch.model import ulid
from edgeorch.output import Folder, choose, folder_of, keys_in, remove, sweep

KEYS = [f"{ulid(1000.0 + n, random.Random(n).getrandbits(80), '0123456789')}.1" for n in range(4)]


def make(tasks, number, *, size=8192, changed=1000.0):
    folder = folder_of(tasks, KEYS[number])
    (folder / "work" / "deep").mkdir(parents=True)
    (folder / "stdout").write_bytes(b"x" * size)
    (folder / "work" / "link").symlink_to("/")
    for entry in (folder / "stdout", folder / "work", folder):
        os.utime(entry, (changed, changed))
    return folder


def test_a_key_cannot_lead_elsewhere(tmp_path):
    assert folder_of(tmp_path, KEYS[0]) == tmp_path / KEYS[0]
    for bad in ("", "..", "../x", KEYS[0] + "/..", KEYS[0].upper(), KEYS[0][:-2], KEYS[0] + "\n"):
        with pytest.raises(ValueError, match="not TASKID"):
            folder_of(tmp_path, bad)


def test_the_old_go_first_and_what_is_kept_stays():
    folders = [
        Folder(key="b", size=10, changed=2),
        Folder(key="a", size=10, changed=1),
        Folder(key="c", size=10, changed=3),
    ]

    def chosen(keep, max_bytes, *, before=0):
        return choose(folders, keep, max_bytes, lambda folder: folder.changed < before)

    assert chosen((), 30) == []
    assert chosen((), 25) == ["a"]
    assert chosen((), 5) == ["a", "b", "c"]
    assert chosen({"a"}, 15) == ["b", "c"]
    assert chosen((), 30, before=3) == ["a", "b"]
    assert chosen({"b"}, 30, before=3) == ["a"]


async def test_a_folder_is_removed_whole_and_links_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    folder = make(tmp_path / "tasks", 0)
    (folder / "work" / "out").symlink_to(outside)
    (folder / "work" / "closed").mkdir(mode=0)
    assert await remove(folder)
    assert (outside / "precious").exists()
    assert list((tmp_path / "tasks").iterdir()) == []
    assert await remove(folder)


async def test_a_link_in_place_of_a_folder_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (tmp_path / KEYS[0]).symlink_to(outside)
    assert await remove(tmp_path / KEYS[0])
    assert [entry.name for entry in tmp_path.iterdir()] == ["outside"]
    assert (outside / "precious").exists()


async def test_a_sweep_keeps_what_fits_and_finishes_earlier_removals(tmp_path):
    tasks = tmp_path / "tasks"
    assert (await sweep(tasks, keep=(), max_bytes=0)).removed == ()
    assert await keys_in(tasks) == []
    for number in range(3):
        folder = make(tasks, number, changed=1000.0 + number)
        # As the runner leaves it behind a service that has ended.
        shutil.rmtree(folder / "work")
        os.utime(folder, (1000.0 + number, 1000.0 + number))
    (tasks / f".removing-{KEYS[3]}").mkdir()
    (tasks / "notes").touch()
    nothing = await sweep(tasks, keep=(), max_bytes=1 << 30)
    assert nothing.removed == ()
    assert nothing.before == nothing.after > 3 * 8192
    swept = await sweep(tasks, keep={KEYS[0]}, max_bytes=nothing.before - 1)
    assert swept.removed == (KEYS[1],)
    assert swept.after < swept.before
    assert await keys_in(tasks) == [KEYS[0], KEYS[2]]
    swept = await sweep(tasks, keep={KEYS[0]}, max_bytes=1 << 30, old=lambda _folder: True)
    assert swept.removed == (KEYS[2],)
    assert sorted(entry.name for entry in tasks.iterdir()) == [KEYS[0], "notes"]


async def test_a_sweep_removes_what_an_ended_service_left_in_its_work_folder(tmp_path):
    ended, running = make(tmp_path, 0), make(tmp_path, 1)
    swept = await sweep(tmp_path, keep=[running.name], max_bytes=1 << 30)
    assert swept.removed == ()
    assert sorted(path.name for path in ended.iterdir()) == ["stdout"]
    assert (running / "work" / "deep").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([ended.name, running.name])
