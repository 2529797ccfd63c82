#!/usr/bin/python
"""Whether this host's node takes tasks."""

DOCUMENTATION = r"""
module: edgeorch_drain
short_description: Drain, cordon or resume the node of this host
description:
  - A drained or cordoned node takes nothing new; what runs goes on.
  - With C(drain) it is waited for until nothing runs there any more.
options:
  state:
    description: What the node is to do.
    type: str
    choices: [drain, cordon, resume]
    default: drain
  wait_s:
    description: How long running services may take to end.
    type: int
    default: 60
  token:
    description: An API token of role admin.
    type: str
    required: true
  folder:
    description: Settings and keys.
    type: path
    default: /etc/edgeorch
  port:
    description: The REST port.
    type: int
    default: 56001
author: edgeorch
"""

EXAMPLES = r"""
- name: Let nothing new start here, and wait for what runs
  edgeorch_drain:
    token: "{{ lookup('file', '.edgeorch/home/admin.token') }}"
"""

RETURN = r"""
said:
  description: What the node says of itself while it drains.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.edgeorch_local import LocalNode, wait_idle

STATES = {"drain": "draining", "cordon": "cordoned", "resume": "alive"}


def main():
    """The module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": list(STATES), "default": "drain"},
            "wait_s": {"type": "int", "default": 60},
            "token": {"type": "str", "required": True, "no_log": True},
            "folder": {"type": "path", "default": "/etc/edgeorch"},
            "port": {"type": "int", "default": 56001},
        },
        supports_check_mode=True,
    )
    wish, said = module.params, ""
    try:
        node = LocalNode(wish["folder"], wish["port"], wish["token"])
        before = node.get("/api/v1/nodes/self")["state"]
        changed = before != STATES[wish["state"]]
        if changed and not module.check_mode:
            node.change(wish["state"])
    except OSError as error:
        module.fail_json(msg="the node cannot be asked: %s" % error)
    if wish["state"] == "drain" and not module.check_mode:
        said, idle = wait_idle(module, wish["wait_s"])
        if not idle:
            module.fail_json(
                msg="after %d s it says: %s; run this again, or cancel what runs there"
                % (wish["wait_s"], said),
                changed=changed,
            )
    module.exit_json(
        changed=changed, said=said, diff={"before": before + "\n", "after": STATES[wish["state"]] + "\n"}
    )


if __name__ == "__main__":
    main()
