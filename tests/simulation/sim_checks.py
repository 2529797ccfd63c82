"""What must hold after every step of a simulation, checked where the step happens."""

import hashlib
import math
import sys

import msgspec
import structlog
import trio

from edgeorch.model import AttemptState, TaskSpec, TaskState

MARK = "hush"
"""In every secret, and in nothing else."""
CANCEL_S = 60.0
"""Nothing of a task is started so long after its cancellation was answered."""
_STARTED = (AttemptState.RUNNING, AttemptState.SUCCEEDED, AttemptState.FAILED)
_GIVEN_UP = (AttemptState.LOST, AttemptState.SUPERSEDED)
SETTLED = ("state", "exit_code", "ended_at", "reason")
"""Output may still come in: the last words of an attempt that was cut off belong to the task, too."""


class BrokenError(BaseException):  # the node contains Exceptions, and must not contain this one
    """An invariant does not hold; the message says which, the trace how it came to that."""


class Checks:
    """Sees each commit and each start of a service; raises ``BrokenError`` at the first fault.

    Attributes:
        accepted: ids that a node has answered with 202, by the node's name.
    """

    def __init__(self, show=None):
        self.accepted: dict[str, list[str]] = {}
        self.specs: dict[str, TaskSpec] = {}
        self.hosts = {}
        """Hosts by the name of their node."""
        self.starts: dict[str, list[str]] = {}
        """Attempts that were really started on some host, by task id."""
        self.calm = False
        """The faults are over."""
        self.made: dict[str, list[str]] = {}
        """Ids of callbacks as they were made, by task id; a crash may have lost the last."""
        self.told: dict[str, dict[str, str]] = {}
        """State by id of callbacks as they first arrived, by task id."""
        self.cancelled: dict[str, float] = {}
        """When the cancellation of a task was answered."""
        self.parents: dict[str, str] = {}
        self.given: dict[tuple[str, str], dict[str, bytes]] = {}
        """Secrets by the request that they came with and the place in it."""
        self.answers: dict[str, list[str]] = {}
        """Ids by request, as it was first answered."""
        self.reads = {}
        """Ended tasks as somebody was told of them first."""
        self.numbers: dict[tuple[str, int], str] = {}
        """Task id by node and ServiceID."""
        self._show = show
        self._trace = hashlib.sha256()
        self.ends = {}
        """Events that tell of the end of a task, by its id."""
        self.records: set[str] = set()
        """Ids in the audit trails."""
        self.steps = 0

    def say(self, who, what):
        """One line of the trace."""
        line = f"{trio.current_time():.6f} {who} {what}"
        self._trace.update(line.encode() + b"\n")
        if self._show:
            self._show(line)
        self.steps += 1

    def digest(self):
        """The trace so far, as one number."""
        return self._trace.hexdigest()

    def accept(self, who, tasks):
        """These tasks were answered with 202."""
        for task in tasks:
            known = self.accepted.setdefault(who, [])
            if task.id not in known:
                known.append(task.id)
            self.say(who, f"accepted {task.id}")
            if task.service_id and self.numbers.setdefault((who, task.service_id), task.id) != task.id:
                raise BrokenError(f"{task.id} has the ServiceID of {self.numbers[who, task.service_id]}")

    def answer(self, who, request, tasks):
        """A request was answered with these tasks; with the same key it gets the same."""
        ids = [task.id for task in tasks]
        first = self.answers.setdefault(request, ids)
        if first != ids:
            raise BrokenError(f"{request} was answered with {first}, now with {ids}")
        self.accept(who, tasks)
        self.silent(f"an answer of {who}", msgspec.json.encode(tasks))

    def requests(self, stored):
        """Each request made all of its tasks or none, and once. ``stored``: tasks by node."""
        made = {}
        for who, tasks in stored.items():
            for task in tasks:
                metadata = self.specs[task.id].metadata
                if task.parent is None and "request" in metadata:
                    made.setdefault((who, metadata["request"], int(metadata["of"])), []).append(task.id)
        for (who, request, count), ids in made.items():
            if len(ids) != count:
                raise BrokenError(f"{request} of {count} tasks made {ids} at {who}")

    def refused(self, who, error):
        """A node says no."""
        self.say(who, f"refuses: {error}")
        self.silent(f"an error of {who}", f"{error} {error!r}".encode())

    def read(self, who, task):
        """A node tells of a task; what has ended stays as it was told."""
        self.say(who, f"tells that {task.id} is {task.state}")
        self.silent(f"an answer of {who}", msgspec.json.encode(task))
        if task.state.terminal:
            first = self.reads.setdefault(task.id, task)
            if any(getattr(first, field) != getattr(task, field) for field in SETTLED):
                raise BrokenError(f"{task.id} was told as {first}, now as {task}")

    def silent(self, where, content):
        """No secret is in there."""
        if MARK.encode() in content:
            raise BrokenError(f"a secret is in {where}: {content!r}")

    def log(self, _logger, _method, line):
        """A processor for structlog."""
        self.silent("the log", f"{line} {sys.exc_info()[1]!r}".encode())
        if not self._show:
            raise structlog.DropEvent
        return line

    def task(self, who, before, after):
        """A node has put a task on its disk."""
        attempts = ", ".join(f"{a.number} {a.node_name} {a.state}" for a in after.attempts[-3:])
        self.say(who, f"task {after.id} {after.state} [{attempts}]")
        valid = [attempt for attempt in after.attempts if not attempt.state.terminal]
        if len(valid) > 1:
            raise BrokenError(f"{after.id} has {len(valid)} valid attempts: {attempts}")
        numbers = [attempt.number for attempt in after.attempts]
        if numbers != sorted(set(numbers)):
            raise BrokenError(f"{after.id} has attempts {numbers}")
        if before is None:
            self.specs[after.id] = msgspec.json.decode(after.spec, type=TaskSpec)
            if after.parent is not None:
                self.parents[after.id] = after.parent
        else:
            self._change(before, after)

    def _change(self, before, after):
        if before.state.terminal:
            for field in SETTLED:
                was, now = getattr(before, field), getattr(after, field)
                if was != now:
                    raise BrokenError(f"{after.id} had ended, and its {field} went from {was!r} to {now!r}")
        old = {attempt.number: attempt for attempt in before.attempts}
        for attempt in after.attempts:
            known = old.pop(attempt.number, attempt)
            # The one change that a late report may make: what was given up turns out to have ended.
            open_ended = not known.state.terminal or known.state in _GIVEN_UP
            if not open_ended and known.state is not attempt.state:
                raise BrokenError(f"{after.id}.{attempt.number} went from {known.state} to {attempt.state}")
        if any(attempt.state in _STARTED for attempt in old.values()):
            raise BrokenError(f"{after.id} has forgotten its attempts {sorted(old)}")

    def parent(self, task, children):
        """A parent has ended, with these children on the disk."""
        running = [child.id for child in children if not child.state.terminal]
        if running and task.state is not TaskState.TIMED_OUT:
            raise BrokenError(f"{task.id} is {task.state}, and its children {running} have not ended")
        failed = [child.id for child in children if child.state is not TaskState.SUCCEEDED]
        if task.state is TaskState.SUCCEEDED and (failed or not children):
            raise BrokenError(f"{task.id} has succeeded, and its children {failed} have not")

    def put_down(self, who, events, records):
        """A node has written these events and records of the audit trail; each once, and an end is one."""
        for event in events:
            if event.type == "state" and TaskState(event.data["state"]).terminal:
                first = self.ends.setdefault(event.task, event)
                if first is not event:
                    raise BrokenError(f"{event.task} tells of its end twice: {first}, {event}")
        for record in records:
            if record.id in self.records:
                raise BrokenError(f"{who} has written twice: {record}")
            self.records.add(record.id)

    def dropped(self, who, task):
        """A node forgets a task."""
        self.say(who, f"dropped {task.id}")
        if not task.state.terminal:
            raise BrokenError(f"{task.id} was dropped while {task.state}")

    def makes(self, task_id, callback_ids):
        """A node is about to commit these callbacks."""
        made = self.made.setdefault(task_id, [])
        for one in callback_ids:
            if one in made and one not in self.told.get(task_id, {}):
                made.remove(one)  # lost in a crash with its transaction, so its number is free again
            made.append(one)

    def take(self, callback):
        """A callback has arrived; it may come again."""
        state = msgspec.json.decode(callback.body)["state"]
        self.say(callback.task_id, f"tells {callback.id} {state}")
        told = self.told.setdefault(callback.task_id, {})
        told.setdefault(callback.id, state)
        made = self.made[callback.task_id]
        if list(told) != sorted(told, key=made.index):
            raise BrokenError(f"{callback.task_id} tells {list(told)}, made as {made}")

    def untold(self, task):
        """What the receiver has not heard of an ended task; empty where nothing is missing."""
        told = list(self.told.get(task.id, {}).values())
        if self.specs[task.id].callback_url is None or told[-1:] == [task.state]:
            return ""
        return f"{task.id} is {task.state}, and callbacks told {told}"

    def started(self, who, launch):
        """A host starts a service."""
        self.say(who, f"starts {launch.key}")
        task_id, _, _ = launch.key.rpartition(".")
        earlier = self.starts.setdefault(task_id, [])
        if launch.key in earlier:
            raise BrokenError(f"{launch.key} was started twice")
        spec = self.specs[task_id]
        given = self.given.get((spec.metadata.get("request"), spec.metadata.get("index")), {})
        if {name: secret.value for name, secret in launch.secrets.items()} != given:
            raise BrokenError(f"{launch.key} was started with the secrets {sorted(launch.secrets)}")
        if len(earlier) >= spec.retry.max_attempts:
            raise BrokenError(
                f"{task_id} may run {spec.retry.max_attempts} times; {launch.key} was started after {earlier}"
            )
        since = min(self.cancelled.get(one, math.inf) for one in (task_id, self.parents.get(task_id, "")))
        if trio.current_time() - since > CANCEL_S:
            raise BrokenError(
                f"{launch.key} was started {trio.current_time() - since:.0f} s after a cancellation"
            )
        running = [key for key in earlier if self._runs(key)]
        if spec.on_disconnect == "stop" and running:
            raise BrokenError(f"{launch.key} was started while {running} still ran")
        earlier.append(launch.key)

    def _runs(self, key):
        services = [host.services[key] for host in self.hosts.values() if key in host.services]
        return any(service.end is None and not service.scope.cancel_called for service in services)
