"""How the node speaks: one event per line on stderr, or the journal's own protocol under systemd."""

import errno
import logging
import math
import sys
import time
from collections import OrderedDict
from collections.abc import MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal

import structlog
from structlog.typing import EventDict

from edgeorch.config import Log
from edgeorch.model import attempt_of
from edgeorch.systemd import Journal

PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}
LINES = 4
REMEMBERED = 10_000
"""Tasks of which it is known how much was said."""
SAME_AGAIN_S = 60.0
LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SENTENCES = 100
"""Of libraries, of which it is known when they were last said."""
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
NAMES = {"warn": "warning", "exception": "error"}
"""Of methods that are not called like their level."""
SPECIAL = frozenset(" \t=\r\n\"'")
"""What makes a value in a line of text need quotes."""


class _ToJournal:
    """The last processor: sends the record, prints nothing."""

    def __init__(self) -> None:
        self._journal = Journal()

    def __call__(self, _logger: object, method: str, event: MutableMapping[str, Any]) -> str:
        message = str(event.pop("event", ""))
        trace = event.pop("exception", "")
        fields = {name: value for name, value in event.items() if name not in ("level", "timestamp")}
        said = " ".join(f"{name}={value}" for name, value in fields.items())
        text = f"{message} {said}".rstrip() + (f"\n{trace}" if trace else "")
        self._journal.write(PRIORITIES.get(method, 6), text, fields)
        raise structlog.DropEvent


class _Stderr:
    """Where lines go; a full disk or a reader that has gone away must not stop the node."""

    def say(self, line: str) -> None:
        with suppress(OSError):
            sys.stderr.write(f"{line}\n")  # one system call: stderr is buffered by the line

    debug = info = warning = error = critical = exception = say


class _Every:
    """The first processor: drops what need not be said, and gives the others what every line has.

    All in one, as a short task has four lines. Of a task there are at most four at level info, the last one
    for its end: one that is tried for days fills no disk.
    """

    def __init__(self) -> None:
        self.level = LEVELS["info"]
        """What is less important is dropped; it may change while the node runs."""
        self.traces = True
        """Whether exceptions become text here."""
        self._said: OrderedDict[str, int] = OrderedDict()

    def __call__(self, logger: object, method: str, event: EventDict) -> EventDict:
        if LEVELS.get(method, self.level) < self.level:
            raise structlog.DropEvent
        if "key" in event:
            _name_the_task(event)
        if method == "info" and event.get("task") and event.get("event") != "ended":
            self._count(event["task"])
        event["level"] = NAMES.get(method, method)
        event["timestamp"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        if self.traces and "exc_info" in event:
            event = structlog.processors.format_exc_info(logger, method, event)
        return event

    def _count(self, task: str) -> None:
        said = self._said.pop(task, 0)
        self._said[task] = said + 1
        if len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        if said >= LINES - 1:
            raise structlog.DropEvent


class _Libraries(logging.Handler):
    """What libraries (zeroconf, Docker's SDK, asyncio) log, as events of ours: only what matters, one line.

    They show tracebacks for what is no defect, such as a network that has gone or a process that may open no
    more files; those of other errors are kept. The same sentence comes once a minute: whoever tries again ten
    times a second would fill the disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        said = f"{record.name} {record.msg}"
        now = time.monotonic()
        if now - self._said.get(said, -math.inf) < SAME_AGAIN_S:
            return
        if len(self._said) >= SENTENCES:
            self._said.clear()
        self._said[said] = now
        error = record.exc_info[1] if record.exc_info else None
        limit = isinstance(error, OSError) and error.errno in LIMITS
        defect = record.levelno >= logging.ERROR and not limit
        trace = record.exc_info if defect else None
        log = structlog.get_logger()
        try:
            log.log(record.levelno, record.getMessage(), library=record.name, exc_info=trace)
        except (OSError, TypeError, ValueError):
            self.handleError(record)


_every = _Every()
_processors: list[Any] = []
"""Loggers are made once, and made before a change of the settings they must follow it: changed in place."""


def _name_the_task(event: MutableMapping[str, Any]) -> None:
    """An attempt's key as task and attempt, so that one search finds everything about a task."""
    task, number = attempt_of(str(event["key"]))
    if number >= 0:
        del event["key"]
        event["task"], event["attempt"] = task, number


def _plain(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """The last processor for a file or a pipe: what structlog writes for people, at a fifth of the cost."""
    first = f"{event.pop('timestamp')} [{event.pop('level'):<9}] {event.pop('event', '')}"
    trace = event.pop("exception", "")
    said = [first]
    for name, value in sorted(event.items()):
        plain = isinstance(value, str) and not SPECIAL.intersection(value)
        said.append(f"{name}={value if plain else repr(value)}")
    return " ".join(said) + (f"\n{trace}" if trace else "")


def set_level(level: Literal["debug", "info", "warning", "error"]) -> None:
    """Say from now on what is at least this important."""
    _every.level = LEVELS[level]


def set_up(settings: Log) -> Literal["text", "json", "journal"]:
    """Configure structlog and the standard library's logging for this process; returns the format."""
    found: Literal["text", "journal"] = "journal" if Journal.here() else "text"
    kind: Literal["text", "json", "journal"] = found if settings.format == "auto" else settings.format
    last: Any
    _every.traces = True
    if kind == "journal":
        last = _ToJournal()
    elif kind == "json":
        last = structlog.processors.JSONRenderer()
    elif sys.stderr.isatty():
        # structlog's own choice would print local variables: keys and tokens among them.
        last = structlog.dev.ConsoleRenderer(
            pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
        _every.traces = False
    else:
        last = _plain
    _processors[:] = [_every, last]
    structlog.configure(
        processors=_processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS["debug"]),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=True,
    )
    set_level(settings.level)
    logging.basicConfig(level=logging.WARNING, handlers=[_Libraries()], force=True)
    return kind
