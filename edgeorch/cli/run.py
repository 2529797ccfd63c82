"""``edgeorch run``: like running it here, on the best node of the fleet."""

import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import click

from edgeorch.cli import INTERRUPTED, options, show
from edgeorch.cli.printing import Printer
from edgeorch.cli.spec import Duration, Size, name_of, secrets_of, service_of
from edgeorch.client.answers import Task
from edgeorch.client.endpoint import Endpoint

if TYPE_CHECKING:
    import trio

    from edgeorch.client.trio_client import AsyncClient

TIMED_OUT = 5


@click.command(
    epilog="""\b
Examples:
  edgeorch run -- uname -a
  edgeorch run --image busybox --memory 64M -- sh -c 'echo $HOSTNAME'
  edgeorch run --on 'arch == arm64 and labels.zone == kitchen' -- ./resize in.jpg
  edgeorch run --all -- uptime
  edgeorch run --secret token=token.txt -- sh -c 'upload --token-file secrets/token'

The exit code is the task's own (128 + n after signal n); 1 where it has none, 5 where its time was up.
Ctrl-C cancels the task; once more leaves at once."""
)
@click.option("--image", metavar="IMAGE", help="Run this container image; the command is its arguments.")
@click.option("--option", "docker", multiple=True, metavar="WORD", help="An option of docker run; repeat it.")
@click.option("--node", metavar="NAME", help="On this node alone.")
@click.option(
    "--on", "constraints", multiple=True, metavar="CONSTRAINT", help="Only on nodes that match; repeat it."
)
@click.option("--all", "everywhere", is_flag=True, help="On every live node that matches.")
@click.option("--name", metavar="NAME", help="The task's name; default: the program's or image's.")
@click.option("--cpus", type=click.FloatRange(0, 4096), default=0.0, help="CPUs it needs; may be a fraction.")
@click.option("--memory", type=Size(), default=0, metavar="SIZE", help="Memory it needs, such as 512M.")
@click.option("--timeout", type=Duration(), metavar="TIME", help="End it after this time, such as 10m.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Set a variable; repeat it.")
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME=FILE",
    help="A file in memory for it: /run/secrets/NAME in a container, else secrets/NAME. NAME=- reads stdin, "
    "NAME alone the variable of that name. Repeat it.",
)
@click.option("--once", is_flag=True, help="At most once: no second attempt, whatever happens.")
@click.option("-d", "--detach", is_flag=True, help="Print the task's id and leave.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but the task's own.")
@options.as_json
@click.argument("words", nargs=-1, metavar="-- CMD...", type=click.UNPROCESSED)
@options.fleet_command
def run(
    endpoint: Endpoint,
    *,
    image: str | None,
    docker: tuple[str, ...],
    node: str | None,
    constraints: tuple[str, ...],
    everywhere: bool,
    name: str | None,
    cpus: float,
    memory: int,
    timeout: float | None,
    env: tuple[str, ...],
    secrets: tuple[str, ...],
    once: bool,
    detach: bool,
    quiet: bool,
    as_json: bool,
    words: tuple[str, ...],
) -> int:
    """Run a command or a container on the best node and show its output."""
    import trio

    spec: dict[str, Any] = {
        "name": name or name_of(image, words or ("task",)),
        "service": [service_of(image, env, docker, words)],
        "placement": {
            "constraints": list(constraints),
            "mode": "all" if everywhere else "best",
            "node": node,
        },
        "resources": {"cpus": cpus, "memory": memory},
        "timeout_s": timeout,
    }
    if secrets:
        spec["secrets"] = secrets_of(secrets)
    if once:
        spec["retry"] = {"max_attempts": 1}
    if detach:
        from edgeorch.client.plain_client import Client

        with Client(endpoint=endpoint) as client:
            task = client.submit(spec)
        show.json_line(task) if as_json else click.echo(task.id)
        return 0
    return trio.run(_run, endpoint, spec, _Talk(quiet=quiet), Printer(as_json=as_json))


class _Talk:
    """What is said on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._last = ""

    def say(self, text: str) -> None:
        """A line on stderr, if it is a new one."""
        if not self._quiet and text != self._last:
            self._last = text
            show.say(f"edgeorch: {text}")

    def about(self, task: Task) -> None:
        """Where the task stands."""
        attempt = task.current
        if task.state == "running" and attempt:
            again = f" (attempt {attempt.number})" if attempt.number > 1 else ""
            self.say(f"running on {attempt.node_name or attempt.node}{again}")
        elif not task.ended and task.reason:
            self.say(f"{task.state}: {task.reason}")


class _Session:
    """One task from handing it in to its end, while signals may come."""

    def __init__(self, client: "AsyncClient", talk: _Talk, printer: Printer) -> None:
        self._client = client
        self._printer = printer
        self._talk = talk
        self._interrupts = 0
        self._task_id = ""

    async def run(self, spec: dict[str, Any]) -> int:
        """The exit code."""
        import trio

        ended: list[Task] = []
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_signals, signals, nursery)
                task = await self._client.submit(spec)
                self._task_id = task.id
                self._talk.say(f"task {task.id}")
                self._talk.about(task)
                nursery.start_soon(self._watch_events)
                await self._print_output(trio.CapacityLimiter(1))
                ended.append(await self._client.wait(self._task_id))
                nursery.cancel_scope.cancel()
        if not ended:
            how = f"; `edgeorch task show {self._task_id}` tells how it ends" if self._task_id else ""
            self._talk.say(f"left{how}")
            return INTERRUPTED
        return self._end(ended[0])

    async def _watch_signals(self, signals: AsyncIterator[int], nursery: "trio.Nursery") -> None:
        async for _ in signals:
            self._interrupts += 1
            if self._interrupts > 1 or not self._task_id:
                nursery.cancel_scope.cancel()
                return
            self._talk.say(f"cancelling {self._task_id}; once more leaves at once")
            nursery.start_soon(self._client.cancel, self._task_id)

    async def _watch_events(self) -> None:
        async with self._client.events(self._task_id) as events:
            async for event in events:
                if event.type == "progress":
                    self._talk.say(str(event.data.get("text", "")))
                else:
                    self._talk.about(await self._client.task(self._task_id))

    async def _print_output(self, printing: "trio.CapacityLimiter") -> None:
        import trio

        async with self._client.output(self._task_id, follow=True) as pieces:
            async for piece in pieces:
                # In a thread: Ctrl-C must be heard while the reader of a pipe is slow.
                write = self._printer.write
                await trio.to_thread.run_sync(write, piece, abandon_on_cancel=True, limiter=printing)

    def _end(self, task: Task) -> int:
        """Say how it ended; the exit code."""
        self._printer.finish()
        if self._printer.as_json:
            show.json_line({"task": task})
        if task.succeeded:
            return 0
        attempt = task.current
        where = f" on {attempt.node_name or attempt.node}" if attempt else ""
        reason = task.reason or (attempt.reason if attempt else "")
        self._talk.say(f"{task.state.replace('_', ' ')}{where}" + (f": {reason}" if reason else ""))
        if task.state == "cancelled" and self._interrupts:
            return INTERRUPTED
        if task.state == "timed_out":
            return TIMED_OUT
        if attempt and attempt.signal:
            return 128 + attempt.signal
        return task.exit_code or 1


async def _run(endpoint: Endpoint, spec: dict[str, Any], talk: _Talk, printer: Printer) -> int:
    from edgeorch.client.trio_client import AsyncClient

    async with AsyncClient(endpoint=endpoint) as client:
        return await _Session(client, talk, printer).run(spec)
