"""What the demo shows: the request, who was chosen and why, the output, the callback, the tasks."""

import json
import sys
from typing import Any, cast

import click
import httpx2
import trio

from edgeorch.cli import show, tasks
from edgeorch.cli.demo.example import Example, Wanted, choose
from edgeorch.cli.demo.fleet import Fleet
from edgeorch.cli.demo.receiver import Receiver
from edgeorch.cli.printing import Printer
from edgeorch.cli.submit import ranking_rows
from edgeorch.client.answers import Ranked
from edgeorch.client.calls import TaskFilter
from edgeorch.client.trio_client import AsyncClient
from edgeorch.errors import EdgeorchError
from edgeorch.scheduler import NEAR

STORY_S = 25.0
ENDED = {"Finished", "Failed"}


def print_line(fleet: Fleet) -> None:
    """The one line of ``--json``."""
    nodes = [
        {
            "name": member.name,
            "id": member.id,
            "url": member.url,
            "pid": member.process.pid if member.process else None,
            "config": str(member.config),
        }
        for member in fleet.members
    ]
    show.json_line({"nodes": nodes, "token": fleet.token, "ca": str(fleet.ca), "dir": str(fleet.folder)})
    sys.stdout.flush()


def say_kept(fleet: Fleet) -> None:
    """How to use the fleet that stays."""
    show.say("\nThe fleet stays up until Ctrl-C. In another terminal:")
    show.say(f"  export EDGEORCH_URL={fleet.members[0].url} EDGEORCH_TOKEN={fleet.token}")
    show.say("  edgeorch nodes --why")
    show.say("  edgeorch run -- uname -a")
    for member in fleet.members:
        show.say(f"  {member.name}: {member.url}, also https with --cacert {fleet.ca}; log {member.log}")


async def tell(fleet: Fleet, wanted: str | None) -> int:
    """Run the example and show all of it; the exit code."""
    try:
        with trio.fail_after(STORY_S):
            async with trio.open_nursery() as nursery:
                receiver = Receiver()
                await nursery.start(receiver.run)
                code = await _tell(fleet, cast("Wanted", wanted), receiver)
                nursery.cancel_scope.cancel()
    except trio.TooSlowError:
        said = "".join(f"\n{member.name}:{member.last_words()}" for member in fleet.members)
        raise EdgeorchError(f"the example did not end within {STORY_S:.0f} s{said}") from None
    return code


async def _tell(fleet: Fleet, wanted: Wanted, receiver: Receiver) -> int:
    asked = fleet.members[0]
    _title("A fleet of three, each a process of its own, TLS 1.3 with mutual certificates between them")
    rows = [
        (one.name, one.url, f"{one.address}:{one.wire_port}", str(one.process.pid if one.process else "-"))
        for one in fleet.members
    ]
    show.table(("NODE", "REST", "NODE TO NODE", "PID"), rows)
    example = await choose(wanted)
    _title(f"The example runs as {_article(example)}: {example.why}")
    if example.driver == "container":
        click.echo("It mounts /var/run and with it the Docker socket, which is root on this machine.")
    url = f"http://127.0.0.1:{receiver.port}/api/v1/services/notification"
    _title("The request, sent to any node")
    click.echo(example.curl(f"{asked.address}:{asked.api_port}", url))
    async with fleet.client(asked) as client:
        ranking = await client.explain(example.spec())
        answer = await _post(asked.url, example.body(url))
        _title(f"The answer of {asked.name}")
        click.echo(json.dumps(answer))
        task_id = answer.get("TaskId", "")
        if answer.get("Message") != "ERROR_NONE" or not task_id:
            raise EdgeorchError(
                f"{asked.name} refused the example: {answer.get('Message')}", hint=answer.get("Detail", "")
            )
        await _show_choice(client, task_id, ranking)
        await _show_output(client, task_id)
        _title(f"Callbacks that arrived at {url}")
        await _show_callbacks(receiver, task_id)
        task = await client.wait(task_id)
        page = await client.tasks_page(TaskFilter(limit=20))
        _title("The fleet's tasks")
        show.table(tasks.COLUMNS, [tasks.row_of(one) for one in page.tasks])
    return 0 if task.succeeded else 1


async def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the curl line does."""
    async with httpx2.AsyncClient(trust_env=False) as http:
        got = await http.post(f"{url}/api/v1/orchestration/services", json=body, timeout=10)
        return cast("dict[str, Any]", got.json())


async def _show_choice(client: AsyncClient, task_id: str, ranking: tuple[Ranked, ...]) -> None:
    """The ranking as it was just before, with the node that took the task."""
    attempt = (await client.task(task_id)).current
    chosen = attempt.node_name if attempt else ""
    _title("Who was chosen, and why")
    rows = [(f"{name} (chosen)" if name == chosen else name, *rest) for name, *rest in ranking_rows(ranking)]
    show.table(("NODE", "DRIVER", "SCORE", "WHY"), rows)
    if chosen and ranking and chosen != ranking[0].node_name:
        click.echo(f"The POST ranks anew, and scores within {NEAR:.0%} of the best count as equal.")


async def _show_output(client: AsyncClient, task_id: str) -> None:
    first = True
    async with client.output(task_id, follow=True) as pieces:
        async for piece in pieces:
            if first:
                attempt = (await client.task(task_id)).current
                _title(f"Live output from {attempt.node_name if attempt else '?'}")
                first = False
            Printer(as_json=False).write(piece)


async def _show_callbacks(receiver: Receiver, task_id: str) -> None:
    async for callback in receiver.arrived:
        if callback.get("TaskId") == task_id:
            click.echo(json.dumps(callback))
            if callback.get("Status") in ENDED:
                return


def _title(text: str) -> None:
    click.echo()
    click.secho(f"# {text}", bold=True, color=None if show.colourful() else False)


def _article(example: Example) -> str:
    return "a container" if example.driver == "container" else "a native program"
