"""The command line: one file per noun, loaded when its command is called.

Data goes to stdout, talk to stderr. Exit codes: 0 ok, 1 failed (``run``: the task's own code), 2 usage,
3 unreachable, 4 refused, 5 timed out, 78 bad configuration.
"""

import importlib
import os
import sys
from collections.abc import Sequence

import click

from edgeorch import __version__
from edgeorch.errors import (
    ConfigError,
    EdgeorchError,
    IdentityError,
    NodeUnreachableError,
    OriginUnreachableError,
)

EX_CONFIG = 78
INTERRUPTED = 130

# Command to the module of edgeorch.cli that has it under this name; in the order of the help page.
COMMANDS = {
    "demo": "demo",
    "status": "status",
    "run": "run",
    "submit": "submit",
    "tasks": "tasks",
    "task": "tasks",
    "nodes": "nodes",
    "top": "top",
    "drain": "nodes",
    "cordon": "nodes",
    "resume": "nodes",
    "audit": "audit",
    "node": "node",
    "keys": "keys",
    "token": "token",
    "doctor": "doctor",
}


class Lazy(click.Group):
    """A group that imports a command's module when the command is needed: the start is felt each time."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Names in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's
        """The command, imported now."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        found = getattr(importlib.import_module(f"edgeorch.cli.{module}"), cmd_name)
        return found if isinstance(found, click.Command) else None


@click.group(
    cls=Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Shell completion: eval "$(_EDGEORCH_COMPLETE=bash_source edgeorch)" (zsh_source, fish_source).',
)
@click.version_option(__version__, prog_name="edgeorch", message="%(prog)s %(version)s")
def edgeorch() -> None:
    """Run containers and commands on the best-placed machine of a small fleet.

    Which node is asked: --url, EDGEORCH_URL, ~/.config/edgeorch/config.toml, or the node of this machine.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code. Whatever goes wrong is a sentence on stderr."""
    try:
        code = edgeorch.main(argv, prog_name="edgeorch", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    # The last line of defence: a sentence, not a traceback.
    except (Exception, KeyboardInterrupt, SystemExit, BaseExceptionGroup) as error:  # noqa: BLE001  see above
        return _failed(error)
    return code if isinstance(code, int) else 0


def exit_code_of(error: EdgeorchError) -> int:
    """The exit code that tells this kind of error."""
    # Keys are part of what a node is given; systemd does not start it again and again on 78.
    if isinstance(error, (ConfigError, IdentityError)):
        return EX_CONFIG
    if isinstance(error, (NodeUnreachableError, OriginUnreachableError)):
        return 3
    if 400 <= error.status < 500:
        return 4
    return 1


def _failed(raised: BaseException) -> int:
    """Say what went wrong; the exit code."""
    leaves = _leaves(raised)
    # A defect is worth more than what it may have caused.
    error = next((leaf for leaf in leaves if not isinstance(leaf, EdgeorchError)), leaves[0])
    if os.environ.get("EDGEORCH_DEBUG"):
        import traceback

        traceback.print_exception(raised)
    match error:
        case click.exceptions.Exit():
            return error.exit_code
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1
        case click.ClickException():
            error.show()
            return 2
        case click.Abort() | KeyboardInterrupt():
            click.echo("interrupted", err=True)
            return INTERRUPTED
        case EdgeorchError():
            _tell_systemd(error)
            click.echo(f"edgeorch: {error.detail}", err=True)
            if error.hint:
                click.echo(f"  {error.hint}", err=True)
            return exit_code_of(error)
    click.echo(f"edgeorch: a defect: {type(error).__name__}: {error}", err=True)
    click.echo("  run it again with EDGEORCH_DEBUG=1 and report what it prints", err=True)
    return 1


def _tell_systemd(error: EdgeorchError) -> None:
    """The sentence stays in `systemctl status`, whatever the journal has come to."""
    if os.environ.get("NOTIFY_SOCKET"):
        from edgeorch.systemd import Notify

        Notify().status(f"ended: {error.detail}{f' ({error.hint})' if error.hint else ''}")


def _leaves(error: BaseException) -> list[BaseException]:
    """The errors inside nested groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
