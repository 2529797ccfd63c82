"""Options that many commands share."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from edgeorch.client.endpoint import Endpoint

Command = TypeVar("Command", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def fleet_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --url, --token and --ca; the command gets them as its first argument, an ``Endpoint``."""

    @click.option("--url", metavar="URL", help="Node to ask: HOST, HOST:PORT or https://HOST:PORT.")
    @click.option("--token", metavar="TOKEN", help="Bearer token (better: EDGEORCH_TOKEN).")
    @click.option("--ca", metavar="FILE", help="The fleet's CA certificate (EDGEORCH_CA).")
    @functools.wraps(command)
    def with_endpoint(*args: Any, url: str | None, token: str | None, ca: str | None, **rest: Any) -> Any:  # noqa: ANN401  click's
        from edgeorch.client.endpoint import resolve  # the daemon's command has no need of the client

        endpoint: Endpoint = resolve(url, token, ca)
        return command(endpoint, *args, **rest)

    return with_endpoint
