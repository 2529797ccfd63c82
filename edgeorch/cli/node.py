"""``edgeorch node``: the daemon."""

from pathlib import Path

import click

from edgeorch import config
from edgeorch.cli import options, show
from edgeorch.imports import stand_in, without


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
            from edgeorch.reload import AT_ONCE

            show.json_line(
                [
                    {"key": key, "value": value, "from": origin, "reload": key in AT_ONCE}
                    for key, value, origin in loaded.rows()
                ]
            )
        else:
            show.table(
                ("SETTING", "VALUE", "FROM"),
                [(key, _text(value), origin) for key, value, origin in loaded.rows()],
            )
        return 0
    # structlog loads rich, 3 MB and a sixth of the start, to draw what the daemon never draws.
    with without("rich"):
        import structlog  # noqa: F401  for all that follows
    # Hypercorn loads HTTP/2 and WebSocket, 2 MB, which rest/http1.py does not speak.
    stand_in("h2")
    stand_in("h2.events")
    stand_in("hypercorn.protocol.h2", "H2Protocol")
    stand_in("hypercorn.protocol.ws_stream", "WSStream")
    import trio

    from edgeorch.node import run_node

    return trio.run(run_node, loaded)


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
