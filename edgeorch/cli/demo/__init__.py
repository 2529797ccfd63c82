"""``edgeorch demo``: see it work on this machine, in seconds, and leave nothing behind."""

import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import click

from edgeorch.cli import options

if TYPE_CHECKING:
    import trio

    from edgeorch.cli.demo.fleet import Fleet

INTERRUPTED = 130


@click.command(
    epilog="""\b
Examples:
  edgeorch demo
  edgeorch demo --keep
  edgeorch demo --json | jq -r '.nodes[].url'

Needs no root and no network. Ctrl-C or SIGTERM tidies everything up."""
)
@click.option("--keep", is_flag=True, help="Leave the fleet up until Ctrl-C and print its addresses.")
@click.option("--container", "wanted", flag_value="container", help="Run a container, or fail.")
@click.option(
    "--native", "wanted", flag_value="native", help="Run a program, even where containers could run."
)
@options.as_json
def demo(*, keep: bool, wanted: str | None, as_json: bool) -> int:
    """Start three nodes on this machine, run a service on the best one, and show all of it.

    With --json: only start them, print one line of JSON when all see each other, and stay until Ctrl-C.
    """
    import trio

    return trio.run(_demo, keep, wanted, as_json)


async def _demo(keep: bool, wanted: str | None, as_json: bool) -> int:  # noqa: FBT001  trio.run passes no names
    import trio

    from edgeorch.cli.demo import story
    from edgeorch.cli.demo.fleet import Fleet

    code = INTERRUPTED
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        fleet = Fleet()
        async with trio.open_nursery() as outer:
            work = trio.CancelScope()
            outer.start_soon(_obey, signals, work, fleet)
            try:
                with work:
                    await fleet.start()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(fleet.watch)
                        if as_json:
                            story.print_line(fleet)
                        else:
                            code = await story.tell(fleet, wanted)
                        if keep or as_json:
                            # From here on Ctrl-C is how it ends well.
                            code = 0 if as_json else code
                            story.say_kept(fleet)
                            await trio.sleep_forever()
                        nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    await fleet.stop()
            outer.cancel_scope.cancel()
    return code


async def _obey(signals: AsyncIterator[int], work: "trio.CancelScope", fleet: "Fleet") -> None:
    """The first signal ends the work and tidies up; another one does not wait for the nodes."""
    async for _ in signals:
        if work.cancel_called:
            fleet.kill()
        work.cancel()
