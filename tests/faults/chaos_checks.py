"""What must hold after a chaos run: a pure look at what was asked, answered, run and told."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

ENDED = {"succeeded", "failed", "cancelled", "timed_out", "lost"}
OVERLAP_S = 2.5
"""A cut-off attempt ends within 2 s (DESIGN section 8), and the ledger counts half seconds."""
BEAT_S = 0.5


@dataclass
class History:
    """All that is known of a run.

    Attributes:
        accepted: specs of the tasks that were answered with 202, by id.
        tasks: the tasks that the nodes know at the end, by id, as REST shows them.
        ledger: (seconds, ``start``, ``on`` or ``end``) of each attempt, by (task id, attempt).
        ends: terminal states that a task's events tell, by id.
        told: (Idempotency-Key, body) of callbacks as they arrived, by task id.
    """

    accepted: dict = field(default_factory=dict)
    tasks: dict = field(default_factory=dict)
    ledger: dict = field(default_factory=dict)
    ends: dict = field(default_factory=dict)
    told: dict = field(default_factory=dict)

    def attempts_in_ledger(self, task_id):
        """Numbers of the attempts that really ran."""
        return sorted(number for known, number in self.ledger if known == task_id)


def lost(history):
    """Accepted, and not ended or not known any more."""
    for task_id in history.accepted:
        task = history.tasks.get(task_id)
        if task is None:
            yield f"{task_id} was accepted, and its origin does not know it"
        elif task["state"] not in ENDED:
            yield f"{task_id} has not ended: {task['state']}, {task['reason']}"


def run_twice(history):
    """Run more often than its spec allows."""
    for task_id, task in history.tasks.items():
        allowed = task["spec"]["retry"]["max_attempts"]
        ran = history.attempts_in_ledger(task_id)
        if len(ran) > allowed:
            yield f"{task_id} may run {allowed} times, and attempts {ran} ran"
        for number in ran:
            starts = sum(what == "start" for _, what in history.ledger[task_id, number])
            if starts != 1:
                yield f"{task_id}.{number} was started {starts} times"


def overlaps(history):
    """Two attempts at once, of a task whose cut-off attempts stop."""
    for task_id, task in history.tasks.items():
        if task["spec"]["on_disconnect"] != "stop":
            continue
        ran = history.attempts_in_ledger(task_id)
        for older, newer in pairwise(ran):
            begun = history.ledger[task_id, newer][0][0]
            both = BEAT_S * sum(when > begun for when, _ in history.ledger[task_id, older])
            if both > OVERLAP_S:
                yield f"{task_id}: attempts {older} and {newer} ran at once for {both:.1f} s"


def untrue(history):
    """Told otherwise than it was."""
    for task_id, task in history.tasks.items():
        numbers = [attempt["number"] for attempt in task["attempts"]]
        if numbers != sorted(set(numbers)):
            yield f"{task_id} has attempts {numbers}"
        if open_ones := [
            one for one in task["attempts"] if one["state"] in ("offered", "preparing", "running")
        ]:
            yield f"{task_id} has ended, and its attempts are {open_ones}"
        good = [one["number"] for one in task["attempts"] if one["state"] == "succeeded"]
        if task["state"] == "succeeded":
            whole = [
                number
                for number in good
                if ("end" in {what for _, what in history.ledger.get((task_id, number), ())})
            ]
            if not whole:
                yield f"{task_id} succeeded, and no attempt of {good} ran to its end"
        if task_id in history.ends and history.ends[task_id] != [task["state"]]:
            yield f"{task_id} is {task['state']}, and its events tell {history.ends[task_id]}"


def invented(history):
    """Tasks that nobody asked for, and requests that became two tasks."""
    numbers = Counter(task["spec"]["metadata"]["number"] for task in history.tasks.values())
    yield from (f"request {number} became {count} tasks" for number, count in numbers.items() if count > 1)
    for task_id, _ in history.ledger:
        if task_id not in history.tasks:
            yield f"{task_id} ran, and nobody knows it"


def callbacks(history):
    """Callbacks that never came, came in another order, or told something else."""
    for task_id, task in history.tasks.items():
        if task["spec"]["callback_url"] is None or task["state"] not in ENDED:
            continue
        told = history.told.get(task_id, [])
        first, bodies = [], {}
        for key, body in told:
            if key not in bodies:
                first.append(key)
            if bodies.setdefault(key, body) != body:
                yield f"{task_id}: {key} told two different things"
        if first != sorted(first, key=lambda key: int(key.rpartition(".")[2])):
            yield f"{task_id}: callbacks came as {first}"
        ends = [bodies[key]["state"] for key in first if bodies[key]["event"] == "ended"]
        if ends != [task["state"]]:
            yield f"{task_id} is {task['state']}, and callbacks told {ends}"


RULES = (lost, run_twice, overlaps, untrue, invented, callbacks)


def violations(history):
    """Every broken rule, as sentences."""
    return {rule.__name__: list(rule(history)) for rule in RULES}


def waits_for_the_dead(history, downs):
    """Seconds from a machine's fault until what ran there was started elsewhere.

    Where the origin was down meanwhile, they count from its return: only it can start the task again.

    Args:
        history: of the run.
        downs: (machine, from, until) of faults after which a machine counts as dead.
    """
    for task in history.tasks.values():
        for older, newer in pairwise(task["attempts"]):
            if older["state"] not in ("lost", "superseded") or not (
                older["started_at"] and newer["started_at"]
            ):
                continue
            between = [down for down in downs if older["started_at"] <= down[1] <= newer["started_at"]]
            since = [at for name, at, _ in between if name == older["node_name"]]
            if since:
                back = [until for name, _, until in between if name == task["origin_name"]]
                yield max(newer["started_at"] - max([*since, *back]), 0.0)
