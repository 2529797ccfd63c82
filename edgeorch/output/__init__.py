"""What services print: the folders that hold it, following it live, and cleaning up.

``TASKS/KEY/`` belongs to one attempt (``KEY`` is ``TASKID.NUMBER``): ``work/`` is the service's working
folder, ``stdout`` and ``stderr`` are capped files as ``runner.capped`` writes them. A stream *as kept* is the
file and then, once the attempt has ended, the end that its cap cut off; offsets count in that.
"""

from edgeorch.output.folders import (
    STREAMS,
    Folder,
    Swept,
    choose,
    folder_of,
    keys_in,
    remove,
    streams_of,
    sweep,
)
from edgeorch.output.follow import Piece, Stream, follow, tails
from edgeorch.output.watcher import Watcher

__all__ = [
    "STREAMS",
    "Folder",
    "Piece",
    "Stream",
    "Swept",
    "Watcher",
    "choose",
    "folder_of",
    "follow",
    "keys_in",
    "remove",
    "streams_of",
    "sweep",
    "tails",
]
