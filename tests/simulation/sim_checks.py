"""What must hold after every step of a simulation, checked where the step happens."""

import hashlib

import msgspec
import trio

from edgeorch.model import AttemptState, TaskSpec

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
        self._show = show
        self._trace = hashlib.sha256()
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
            self.accepted.setdefault(who, []).append(task.id)
            self.say(who, f"accepted {task.id}")

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

    def dropped(self, who, task):
        """A node forgets a task."""
        self.say(who, f"dropped {task.id}")
        if not task.state.terminal:
            raise BrokenError(f"{task.id} was dropped while {task.state}")

    def makes(self, task_id, callback_ids):
        """A node is about to commit these callbacks."""
        self.made.setdefault(task_id, []).extend(callback_ids)

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
        if spec.retry.max_attempts == 1 and earlier:
            raise BrokenError(f"{task_id} may run once; {launch.key} was started after {earlier}")
        running = [key for key in earlier if self._runs(key)]
        if spec.on_disconnect == "stop" and running:
            raise BrokenError(f"{launch.key} was started while {running} still ran")
        earlier.append(launch.key)

    def _runs(self, key):
        services = [host.services[key] for host in self.hosts.values() if key in host.services]
        return any(service.end is None and not service.scope.cancel_called for service in services)
