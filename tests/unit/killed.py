"""Runs a piece of code on copies of a folder, each killed at another of its changes to the disk."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import itertools, os, pathlib, shutil, signal, sys
code, source, target = compile(sys.argv[1], "code", "exec"), sys.argv[2], sys.argv[3]
import edgeorch.identity.folder  # once, for all
replace, unlink = pathlib.Path.replace, pathlib.Path.unlink

def run(folder, left):
    def counted(work):
        def change(*arguments, **how):
            nonlocal left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return work(*arguments, **how)
        return change
    pathlib.Path.replace, pathlib.Path.unlink = counted(replace), counted(unlink)
    exec(code, {"folder": pathlib.Path(folder)})

for left in itertools.count():
    folder = f"{target}/{left}"
    shutil.copytree(source, folder)
    child = os.fork()
    if not child:
        run(folder, left)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended != -signal.SIGKILL:
        sys.exit(ended or 0)
"""


def killed_everywhere(code, source, target):
    """Copies of ``source`` below ``target``: killed before the first change, the second, …, and not at all.

    ``code`` finds its copy in ``folder``.
    """
    target.mkdir()
    subprocess.run([sys.executable, "-c", SCRIPT, code, str(source), str(target)], check=True)
    return sorted(target.iterdir(), key=lambda path: int(Path(path).name))
