"""Printing a task's output as it was printed."""

import sys

from edgeorch.cli import show
from edgeorch.client.answers import Output


class Printer:
    """Writes pieces to the streams that they came from; lines of several nodes with their names."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._begun: dict[tuple[str, str], bytes] = {}

    def write(self, piece: Output) -> None:
        """Print a piece; blocks."""
        if self.as_json:
            text = piece.data.decode(errors="replace")
            show.json_line(
                {"stream": piece.stream, "offset": piece.offset, "data": text, "node": piece.label}
            )
        elif piece.label:
            place = (piece.label, piece.stream)
            *lines, self._begun[place] = (self._begun.get(place, b"") + piece.data).split(b"\n")
            _put(piece.stream, b"".join(b"%s | %s\n" % (piece.label.encode(), line) for line in lines))
        else:
            _put(piece.stream, piece.data)

    def finish(self) -> None:
        """Print last lines that never got their end."""
        for (label, stream), rest in self._begun.items():
            if rest:
                _put(stream, b"%s | %s\n" % (label.encode(), rest))
        self._begun.clear()


def _put(stream: str, data: bytes) -> None:
    target = (sys.stdout if stream == "stdout" else sys.stderr).buffer
    target.write(data)
    target.flush()
