"""How the command line shows things: tables on a terminal, tab-separated text in a pipe, or JSON."""

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

COLOURS = {
    **dict.fromkeys(("alive", "ready", "succeeded", "ok"), "green"),
    **dict.fromkeys(("running", "placing"), "cyan"),
    **dict.fromkeys(("waiting", "suspect", "draining", "cordoned", "cancelled", "left", "warning"), "yellow"),
    **dict.fromkeys(("failed", "timed_out", "lost", "dead"), "red"),
}


def json_line(document: Any) -> None:  # noqa: ANN401  anything msgspec knows
    """One JSON document as one line on stdout."""
    click.echo(msgspec.json.encode(document))


def say(text: str) -> None:
    """Talk: a line on stderr."""
    click.echo(text, err=True)


def colourful() -> bool:
    """Whether stdout is a terminal that wants colour (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under their columns. In a pipe: the same words, one row a line, tabs between, nothing cut."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            click.echo("\t".join(" ".join(cell.split()) for cell in row))
        return
    from rich.console import Console

    Console(highlight=False, no_color=not colourful()).print(rich_table(columns, rows))


def rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:  # noqa: ANN401  a rich Table
    """The same as something that rich can draw, and draw again."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, header_style="bold", pad_edge=False)
    *first, last = columns
    for column in first:
        drawn.add_column(column, no_wrap=True)
    drawn.add_column(last, overflow="fold")
    # A reason may be long, and `task show` has all of it; what to do must be readable here.
    one_line = last == "REASON"
    for row in rows:
        cells = [Text(cell, style=COLOURS.get(cell, "")) for cell in row]
        cells[-1].no_wrap, cells[-1].overflow = one_line, "ellipsis" if one_line else "fold"
        drawn.add_row(*cells)
    return drawn


def ago(then: datetime | None, now: datetime | None = None) -> str:
    """How long ago, in the largest fitting unit."""
    if then is None:
        return "-"
    return f"{span(((now or datetime.now(UTC)) - then).total_seconds())} ago"


def span(seconds: float) -> str:
    """A duration in the largest fitting unit."""
    seconds = max(0.0, seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.0f} TiB"
