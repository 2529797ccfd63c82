#!/usr/bin/python
"""Run a service on a fleet."""

DOCUMENTATION = r"""
module: edgeorch_task
short_description: Run a service on the best node of a fleet
description:
  - Hands a task to a node, waits for its end, and fails where the task does, with what it wrote.
  - Runs on the controller as well as on a node; it needs nothing but Python.
options:
  name:
    description: The task's name.
    type: str
    required: true
  argv:
    description: A native service, the program and its arguments. No shell is involved.
    type: list
    elements: str
  env:
    description: Variables of the program in O(argv).
    type: dict
    default: {}
  image:
    description: A container service, the image.
    type: str
  options:
    description: Options of C(docker run) for O(image), word by word.
    type: list
    elements: str
    default: []
  args:
    description: Arguments of the container.
    type: list
    elements: str
    default: []
  service:
    description: >-
      Alternatives instead of O(argv) or O(image), as the API takes them, such as
      C({driver: native, argv: [uname]}); each node takes the first one that it can run.
    type: list
    elements: dict
  secrets:
    description:
      - Files in memory, name to text.
      - A container reads them as C(/run/secrets/NAME), a program as C(secrets/NAME) in its folder.
      - Nobody is shown them again, so a task with the same O(key) counts as the same whatever they hold.
    type: dict
    default: {}
  node:
    description: Run it on this node alone, given by name.
    type: str
  constraints:
    description: Only nodes that match all of these, such as C(arch == arm64 and labels.zone == kitchen).
    type: list
    elements: str
    default: []
  mode:
    description: One node, O(count) different nodes, or every living one that matches.
    type: str
    choices: [best, spread, all]
    default: best
  count:
    description: On how many nodes, where O(mode=spread).
    type: int
    default: 1
  cpus:
    description: CPUs that it needs; may be a fraction.
    type: float
    default: 0
  memory:
    description: Memory that it needs, in bytes or such as C(512M).
    type: str
    default: "0"
  timeout_s:
    description: End one attempt after so many seconds.
    type: float
  spec:
    description: >-
      Further fields of the task as the API takes them, such as C(priority), C(deadline_s), C(retry) and
      C(callback_url).
    type: dict
    default: {}
  key:
    description:
      - Makes the task one that is done once. While a task with this name and key runs or has succeeded,
        nothing is submitted, and the result is that of the task; one that failed is run again.
      - Holds as long as the fleet remembers the task, at whichever node it is asked.
      - Without a key, every run submits a task.
    type: str
  wait:
    description: Whether to wait for the end.
    type: bool
    default: true
  wait_s:
    description: How long to wait. The task goes on where that was not enough, and the module fails.
    type: int
    default: 3600
  url:
    description:
      - Node to ask, as C(HOST), C(HOST:PORT) or C(https://HOST:PORT); of several the first that answers.
      - Where it is left out, E(EDGEORCH_URL), C(url) of C(~/.config/edgeorch/config.toml), or this machine.
    type: list
    elements: str
  token:
    description:
      - An API token that may submit.
      - Where it is left out, E(EDGEORCH_TOKEN) or C(token) of C(~/.config/edgeorch/config.toml).
    type: str
  ca:
    description:
      - The fleet's CA, a PEM file.
      - Where it is left out, E(EDGEORCH_CA) or C(ca) of C(~/.config/edgeorch/config.toml).
    type: path
attributes:
  check_mode:
    support: full
    description: Nothing is submitted; fails where no node could run it, and says in RV(ranking) which would.
author: The edgeorch authors
"""

EXAMPLES = r"""
- name: Say hello on the best node
  edgeorch_task:
    name: hello
    argv: [uname, -a]
  delegate_to: localhost
  register: hello

- name: Resize the pictures once, in the kitchen
  edgeorch_task:
    name: resize
    image: ghcr.io/acme/resize:2
    options: [-e, Q=90]
    args: [in.jpg]
    constraints: [labels.zone == kitchen]
    memory: 64M
    key: pictures-2026-11
    spec:
      priority: 80
      retry: {max_attempts: 5}

- name: Upload with a token that only the task sees
  edgeorch_task:
    name: upload
    argv: [/usr/local/bin/upload, --token-file, secrets/token]
    secrets:
      token: "{{ vault_upload_token }}"

- name: Start the camera and go on
  edgeorch_task:
    name: camera
    argv: [/usr/local/bin/camera]
    node: garage
    key: camera
    wait: false
"""

RETURN = r"""
id:
  description: The task's id; empty in check mode where it would have been submitted.
  returned: always
  type: str
state:
  description: >-
    C(waiting), C(placing), C(running), C(succeeded), C(failed), C(cancelled), C(timed_out) or C(lost).
  returned: when there is a task
  type: str
reason:
  description: Why it ended so, or what it waits for.
  returned: when there is a task
  type: str
exit_code:
  description: The program's; null where it has none, after a signal or before the end.
  returned: when there is a task
  type: int
node:
  description: Name of the node of the newest attempt.
  returned: when there is a task
  type: str
stdout:
  description: What it wrote to its standard output, at most the last MiB.
  returned: when it has ended
  type: str
stdout_lines:
  description: The same by lines.
  returned: when it has ended
  type: list
  elements: str
stderr:
  description: What it wrote to its standard error, at most the last MiB.
  returned: when it has ended
  type: str
stderr_lines:
  description: The same by lines.
  returned: when it has ended
  type: list
  elements: str
task:
  description: The whole task as C(GET /api/v1/tasks/ID) has it.
  returned: when there is a task
  type: dict
ranking:
  description: The nodes, best first, each with its score or why it cannot run the task.
  returned: in check mode
  type: list
  elements: dict
"""

import hashlib
import uuid

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.formatters import human_to_bytes
from ansible.module_utils.edgeorch_api import ARGUMENTS, Api, ApiError, node_of

KEY = "ansible_key"
"""In the task's metadata."""
HIDDEN = "***"
"""A value of the environment, to a token that may only read."""
SHOWN = 4000
"""Characters of output in the sentence of a failure."""


def spec_of(wish):
    """The task that is wished for, as the API takes it.

    Raises:
        ValueError: a value makes no sense.
    """
    if wish["argv"]:
        service = [{"driver": "native", "argv": wish["argv"], "env": strings(wish["env"])}]
    elif wish["image"]:
        service = [
            {"driver": "container", "image": wish["image"], "options": wish["options"], "args": wish["args"]}
        ]
    else:
        service = wish["service"]
    spec = {"name": wish["name"], "service": service, **wish["spec"]}
    placement = {"node": wish["node"], "constraints": wish["constraints"]}
    if wish["mode"] != "best":
        placement.update(mode=wish["mode"], count=wish["count"])
    resources = {"cpus": wish["cpus"], "memory": human_to_bytes(wish["memory"])}
    for field, values in (("placement", placement), ("resources", resources)):
        given = {key: value for key, value in values.items() if value}
        if given:
            spec[field] = {**spec.get(field, {}), **given}
    if wish["timeout_s"]:
        spec["timeout_s"] = wish["timeout_s"]
    if "secrets" in wish["spec"]:
        raise ValueError("spec is shown in logs: give the secrets as `secrets` of the module")
    if wish["secrets"]:
        spec["secrets"] = strings(wish["secrets"])
    if wish["key"]:
        spec["metadata"] = {**spec.get("metadata", {}), KEY: wish["key"]}
    return spec


def strings(values):
    """YAML's numbers and truths as a program gets them."""
    return {name: str(value) for name, value in values.items()}


def shown(spec):
    """A task as nodes show it: of its secrets the names alone."""
    return {**spec, "secrets": dict.fromkeys(spec["secrets"])} if "secrets" in spec else spec


def going_well(task):
    """Whether a task with the same key leaves nothing to do."""
    return not task["ended_at"] or task["state"] == "succeeded"


def same(asked, accepted):
    """Whether a task was asked for in the same way; hidden values of the environment count as equal."""
    if isinstance(asked, dict) and isinstance(accepted, dict):
        return asked.keys() == accepted.keys() and all(same(asked[key], accepted[key]) for key in asked)
    if isinstance(asked, list) and isinstance(accepted, list):
        return len(asked) == len(accepted) and all(map(same, asked, accepted))
    return accepted in (asked, HIDDEN)


def result_of(task):
    """What a playbook wants to know of a task."""
    return {
        "id": task["id"],
        "state": task["state"],
        "reason": task["reason"],
        "exit_code": task["exit_code"],
        "node": node_of(task),
        "task": task,
    }


def failure_of(task, result):
    """One sentence, and below it the end of what the task wrote."""
    where = " on " + result["node"] if result["node"] else ""
    why = ": " + task["reason"] if task["reason"] else ""
    said = (result["stderr"].strip() or result["stdout"].strip())[-SHOWN:]
    return "the task %s %s%s%s%s" % (
        task["name"],
        "has " + task["state"] if task["state"] == "failed" else "is " + task["state"],
        where,
        why,
        "\n" + said if said else "",
    )


def explain(module, api, spec):
    """Check mode: who would run it."""
    ranking = api.submit(shown(spec), "", dry_run=True)["ranking"]
    able = [each for each in ranking if not each["refusal"]]
    if not able:
        reasons = "; ".join("%s: %s" % (each["node_name"], each["refusal"]) for each in ranking)
        module.fail_json(msg="no node could run %s now: %s" % (spec["name"], reasons or "there is none"))
    module.exit_json(changed=True, id="", ranking=ranking)


def find(module, api, spec, wish):
    """The task that does this already, if any, and how many with this key have ended badly."""
    if not wish["key"]:
        return None, 0
    tasks, away = api.tasks(name=wish["name"])
    tasks = [task for task in tasks if task["spec"].get("metadata", {}).get(KEY) == wish["key"]]
    well = next((task for task in tasks if going_well(task)), None)
    if well and not same(shown(spec), well["spec"]):
        module.fail_json(
            msg="the key %s belongs to the task %s, which differs: give another key"
            % (wish["key"], well["id"])
        )
    if not well and away:
        module.warn("a task with this key may be known to %s, which could not be asked" % ", ".join(away))
    return well, len(tasks)


def run(module):
    """Do what is asked for.

    Raises:
        ApiError: no answer, or a refusal.
        ValueError: a value makes no sense.
    """
    wish = module.params
    spec = spec_of(wish)
    api = Api(wish["url"], wish["token"], wish["ca"])
    task, earlier = find(module, api, spec, wish)
    changed = task is None
    if changed and module.check_mode:
        explain(module, api, spec)
    if changed:
        once = repr((wish["name"], wish["key"], earlier)) if wish["key"] else uuid.uuid4().hex
        task = api.submit(spec, hashlib.sha256(once.encode()).hexdigest())
    if wish["wait"] and not (module.check_mode and not task["ended_at"]):
        task = api.ended(task, wish["wait_s"])
    result = {"changed": changed, **result_of(task)}
    if task["ended_at"]:
        for stream in ("stdout", "stderr"):
            result[stream] = api.output(task["id"], stream)
            result[stream + "_lines"] = result[stream].splitlines()
        if task["state"] != "succeeded":
            module.fail_json(msg=failure_of(task, result), **result)
    elif wish["wait"] and not module.check_mode:
        msg = "the task %s has not ended within %d s, it is %s: %s" % (
            task["name"],
            wish["wait_s"],
            task["state"],
            task["reason"] or "look at it by `edgeorch task show %s`" % task["id"],
        )
        module.fail_json(msg=msg, **result)
    module.exit_json(**result)


def main():
    """The module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "argv": {"type": "list", "elements": "str"},
            "env": {"type": "dict", "default": {}},
            "image": {"type": "str"},
            "options": {"type": "list", "elements": "str", "default": []},
            "args": {"type": "list", "elements": "str", "default": []},
            "service": {"type": "list", "elements": "dict"},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "node": {"type": "str"},
            "constraints": {"type": "list", "elements": "str", "default": []},
            "mode": {"type": "str", "choices": ["best", "spread", "all"], "default": "best"},
            "count": {"type": "int", "default": 1},
            "cpus": {"type": "float", "default": 0},
            "memory": {"type": "str", "default": "0"},
            "timeout_s": {"type": "float"},
            "spec": {"type": "dict", "default": {}},
            "key": {"type": "str", "no_log": False},
            "wait": {"type": "bool", "default": True},
            "wait_s": {"type": "int", "default": 3600},
            **ARGUMENTS,
        },
        mutually_exclusive=[("argv", "image", "service")],
        required_one_of=[("argv", "image", "service")],
        supports_check_mode=True,
    )
    try:
        run(module)
    except (ApiError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
