"""``edgeorch node``: the daemon."""

import sys
from pathlib import Path

import click

from edgeorch import config
from edgeorch.cli import options, show


@click.command(
    epilog="""\b
Examples:
  edgeorch node
  edgeorch node --config /etc/edgeorch/edgeorch.toml
  EDGEORCH_LOG_LEVEL=debug edgeorch node --print-config

Any setting can be given as EDGEORCH_SECTION_KEY. Exit code 78: the configuration cannot be used."""
)
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    help=f"TOML file; default: {config.DEFAULT_PATH} where it exists.",
)
@click.option("--print-config", is_flag=True, help="Show each setting and where it came from, and leave.")
@options.as_json
def node(path: Path | None, *, print_config: bool, as_json: bool) -> int:
    """Run this machine's node until SIGTERM or Ctrl-C."""
    loaded = config.load(path)
    if print_config:
        if as_json:
            rows = ({"key": key, "value": value, "from": origin} for key, value, origin in loaded.rows())
            show.json_line(list(rows))
        else:
            show.table(
                ("SETTING", "VALUE", "FROM"),
                [(key, _text(value), origin) for key, value, origin in loaded.rows()],
            )
        return 0
    _import_structlog()
    import trio

    from edgeorch.node import run_node

    return trio.run(run_node, loaded)


def _import_structlog() -> None:
    """Without rich, which structlog loads where it is there: 3 MB and a sixth of the node's start.

    The daemon draws nothing; rich's tracebacks, besides, would write local variables into the log.
    """
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # how Python is told that there is none
    try:
        import structlog  # noqa: F401  for later
    finally:
        del sys.modules["rich"]


def _text(value: object) -> str:
    """A value as TOML would have it."""
    match value:
        case bool():
            return str(value).lower()
        case tuple():
            return "[" + ", ".join(_text(item) for item in value) + "]"
        case dict():
            return "{" + ", ".join(f"{key} = {_text(item)}" for key, item in value.items()) + "}"
        case str():
            return f'"{value}"'
    return str(value)
