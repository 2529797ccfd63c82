#!/usr/bin/python
"""Wait until this host's node is ready and sees the others."""

DOCUMENTATION = r"""
module: edgeorch_health
short_description: Wait until the node of this host is ready and sees other nodes
description:
  - Asks the node over loopback, with TLS and the fleet's own CA, and makes sure that it is this host's node
    that answers before the token is sent.
  - A node that is cordoned or drained counts as ready.
options:
  token:
    description: An API token that may read.
    type: str
    required: true
  sees:
    description: Names of the nodes that it is to see alive.
    type: list
    elements: str
    required: true
  timeout_s:
    description: How long to wait.
    type: int
    default: 60
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
- name: Wait for the fleet
  edgeorch_health:
    token: "{{ lookup('file', '.edgeorch/home/admin.token') }}"
    sees: [kitchen, garage]
"""

RETURN = r"""
node:
  description: The node as it sees itself.
  returned: success
  type: dict
"""

import ssl
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.edgeorch_local import LOOK_S, NODE, LocalNode
from ansible.module_utils.edgeorch_unit import last_words, show

LEFT_ALONE = {"state"}
"""What is not ready by the will of its owner."""


def look(node, sees):
    """What is missing, as a sentence, or the node as it sees itself."""
    try:
        status, answer = node.call("GET", "/readyz")
        failing = set(answer.get("failing", ())) - LEFT_ALONE if status == 503 else set()
        if failing:
            return "it is not ready (%s)" % ", ".join(sorted(failing)), None
        status, answer = node.call("GET", "/api/v1/nodes")
    except ssl.SSLCertVerificationError as error:
        return "its certificate is not good: %s" % error.verify_message, None
    except OSError as error:
        return "it does not answer (%s)" % (error.strerror or error), None
    if status != 200:
        return "it refuses the token of this controller (%d)" % status, None
    alive = {row["name"]: row for row in answer["nodes"] if row["state"] in ("alive", "cordoned", "draining")}
    missing = [name for name in sees if name not in alive]
    if missing:
        states = {
            row["name"]: ", ".join(filter(None, (row["state"], row["reason"]))) for row in answer["nodes"]
        }
        told = ["%s (%s)" % (name, states.get(name, "unknown to it")) for name in missing]
        return "it does not see " + ", ".join(told), None
    return "", next(row for row in answer["nodes"] if row["self"])


def own_words(module):
    """What the node tells systemd, or said last when it does not run."""
    unit = show(module, [NODE], "ActiveState,StatusText")[NODE]
    if unit["ActiveState"] not in ("active", "reloading"):
        return "; edgeorch is %s: %s" % (unit["ActiveState"], last_words(module, NODE, 0))
    return "; it says: %s" % unit["StatusText"] if unit["StatusText"] else ""


def main():
    """The module."""
    module = AnsibleModule(
        argument_spec={
            "token": {"type": "str", "required": True, "no_log": True},
            "sees": {"type": "list", "elements": "str", "required": True},
            "timeout_s": {"type": "int", "default": 60},
            "folder": {"type": "path", "default": "/etc/edgeorch"},
            "port": {"type": "int", "default": 56001},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, node={})
    if not module.params["token"]:
        module.fail_json(
            msg="the fleet's folder on the controller has no admin.token: put it back, or revoke the token "
            "admin and make it anew by tokens.yml"
        )
    try:
        node = LocalNode(module.params["folder"], module.params["port"], module.params["token"])
    except (OSError, ValueError) as error:
        module.fail_json(msg="this node has no keys (%s): run deploy again without --tags" % error)
    timeout_s = module.params["timeout_s"]
    end = time.monotonic() + timeout_s
    while True:
        wrong, seen = look(node, module.params["sees"])
        if not wrong:
            module.exit_json(changed=False, node=seen)
        if time.monotonic() > end:
            module.fail_json(msg="after %d s %s%s" % (timeout_s, wrong, own_words(module)))
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main()
