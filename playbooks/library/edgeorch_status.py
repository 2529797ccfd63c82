#!/usr/bin/python
"""How the node of a host is, in one row."""

DOCUMENTATION = r"""
module: edgeorch_status
short_description: How the node of this host is, for a table of the fleet
description:
  - Never fails because of what it finds; a node that does not run is a row too.
options:
  token:
    description: An API token that may read.
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
- name: Look at the node
  edgeorch_status:
    token: "{{ lookup('file', '.edgeorch/home/admin.token') }}"
"""

RETURN = r"""
row:
  description: >-
    C(state), C(version), C(peers), C(running), C(waiting), C(score), C(cert_days), C(problem), and C(rank),
    which is 0 for a node that is down, 1 for one in trouble, 2 for one to look at, 3 for a good one.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.edgeorch_local import NODE, LocalNode
from ansible.module_utils.edgeorch_unit import last_words, show

TASKS = 500
"""Waiting tasks that are counted."""
WELL = ("alive", "cordoned", "draining")


def down(state, problem):
    """The row of a node that does not run."""
    return {"rank": 0, "state": state, "problem": problem}


def peers_of(rows):
    """How many of the other nodes it sees, and those that it misses."""
    others = [row for row in rows if not row["self"] and row["state"] != "left"]
    missed = ["%s is %s" % (row["name"], row["state"]) for row in others if row["state"] not in WELL]
    return "%d/%d" % (len(others) - len(missed), len(others)), missed


def row_of(node, said):
    """The row of a node that answers."""
    rows = node.get("/api/v1/nodes")["nodes"]
    waiting = node.get("/api/v1/tasks?local=true&state=waiting&limit=%d" % TASKS)["tasks"]
    own = next(row for row in rows if row["self"])
    peers, missed = peers_of(rows)
    bad = [part for part in said.split("; ") if part.startswith("DEGRADED ")]
    soon = [part for part in said.split("; ") if part.startswith("WARNING ")]
    state = "ready" if own["state"] == "alive" else own["state"]
    return {
        "rank": 1 if bad else 2 if soon or missed or state != "ready" else 3,
        "state": state,
        "version": own["version"],
        "peers": peers,
        "running": own["slots_used"],
        "waiting": len(waiting),
        "score": own["score"]["value"],
        "cert_days": own["cert_days"],
        "problem": "; ".join([*bad, *soon, *missed]),
    }


def look(module):
    """The row."""
    unit = show(module, [NODE], "LoadState,ActiveState,StatusText")[NODE]
    if unit["LoadState"] != "loaded":
        return down("absent", "edgeorch is not installed: run deploy.yml")
    if unit["ActiveState"] not in ("active", "reloading"):
        return down(unit["ActiveState"], last_words(module, NODE))
    wish = module.params
    try:
        node = LocalNode(wish["folder"], wish["port"], wish["token"])
        return row_of(node, unit["StatusText"])
    except OSError as error:
        return down("silent", "; ".join(filter(None, [str(error), unit["StatusText"]])))


def main():
    """The module."""
    module = AnsibleModule(
        argument_spec={
            "token": {"type": "str", "required": True, "no_log": True},
            "folder": {"type": "path", "default": "/etc/edgeorch"},
            "port": {"type": "int", "default": 56001},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, row=look(module))


if __name__ == "__main__":
    main()
