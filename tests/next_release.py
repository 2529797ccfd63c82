"""Other releases of this checkout, made by editing a copy: upgrades and mixed fleets are tested with them."""

import shutil
import subprocess
import sys
from pathlib import Path

from edgeorch import __version__
from edgeorch.store.migrations import STEPS

CHECKOUT = Path(__file__).parents[1]
NEXT = "0.999.0"
STEP = STEPS[-1].number + 1
"""The number of the schema's step that the next release adds."""

# What a next release may do without leaving this one behind: file, what stands there once, what does then.
_PROPERTY = '    stderr_tail: bytes = b""\n\n    @property\n'
_STEPS_END = "\n)\n\n\ndef version_of("
_PING = "            pong = await self._links.call(node_id, ping)\n"
_LISTS = "REQUESTS: tuple[type[Message], ...]"
_ADDITIONS = (
    (
        "model.py",
        "    cert_expires_at: Moment = 0.0\n",
        '    cert_expires_at: Moment = 0.0\n    mood: str = "calm"\n',
    ),
    ("model.py", _PROPERTY, '    mood: str = "calm"\n' + _PROPERTY),
    ("runner/protocol.py", "    memory: int = 0\n", '    memory: int = 0\n    mood: str = "calm"\n'),
    ("runner/protocol.py", "    work_dir: str\n", '    work_dir: str\n    mood: str = "calm"\n'),
    (
        "wire/messages.py",
        _LISTS,
        "class AskMood(Message, frozen=True, kw_only=True):\n    answer: ClassVar = Done\n\n    of: str\n\n\n"
        + _LISTS,
    ),
    (
        "membership/probe.py",
        _PING,
        "            from edgeorch.errors import UnsupportedMessageError\n"
        "            from edgeorch.wire.messages import AskMood\n"
        "            try:\n"
        "                await self._links.call(node_id, AskMood(of=node_id))\n"
        "            except UnsupportedMessageError:\n"
        '                log.info("a peer does not know its mood", peer=node_id)\n' + _PING,
    ),
)


def edit(folder: Path, name: str, before: str, after: str) -> None:
    """Replace what stands exactly once in a file of the copied package."""
    path = folder / "edgeorch" / name
    text = path.read_text()
    assert text.count(before) == 1, f"edgeorch/{name} has not {before!r} once any more: adapt the edit"
    path.write_text(text.replace(before, after))


def copy_of_checkout(folder: Path, version: str) -> Path:
    """A copy that builds and runs, with another version and else the same."""
    folder.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, folder)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(CHECKOUT / "edgeorch", folder / "edgeorch", ignore=ignore)
    edit(folder, "__init__.py", f'__version__ = "{__version__}"', f'__version__ = "{version}"')
    return folder


def next_release(folder: Path, *, compatible: int = 1) -> Path:
    """A copy with everything that a next release may add: columns, tables, fields, messages.

    Args:
        folder: where it goes.
        compatible: the oldest step whose code can work with its database.
    """
    copy_of_checkout(folder, NEXT)
    sql = "ALTER TABLE tasks ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm'; CREATE TABLE moods (name TEXT)"
    step = f'    Step(number={STEP}, compatible={compatible}, sql="{sql}"),'
    edit(folder, "store/migrations.py", _STEPS_END, f"\n{step}{_STEPS_END}")
    for name, before, after in _ADDITIONS:
        edit(folder, name, before, after)
    return folder


def wheel_of(folder: Path) -> Path:
    """Build the wheel of a copy."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "dist"]
    subprocess.run([*command, folder], check=True, timeout=300)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def environment(folder: Path) -> dict[str, str]:
    """Makes ``python -m edgeorch`` run the copy instead of the checkout."""
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
