#!/usr/bin/python
"""Find hosts that are copies of others, over the play and what earlier plays have seen."""

DOCUMENTATION = r"""
module: edgeorch_clones
short_description: Find hosts that are copies of others
description:
  - Compares machine id, SSH host key, node id, host name and node name of hosts with one another, and with
    those of the hosts of earlier plays, which a file on the controller keeps.
  - Of two that are alike the later one is told, and of a known and a new one the new.
options:
  path:
    description: File that keeps what is known.
    type: path
    required: true
  hosts:
    description: By name in the inventory what is known of each host of the play.
    type: dict
    required: true
  inventory:
    description: The names of all hosts in the inventory; others are forgotten.
    type: list
    elements: str
    required: true
author: edgeorch
"""

EXAMPLES = r"""
- name: Find copies
  edgeorch_clones:
    path: .edgeorch/home/hosts.json
    hosts: {n1: {machine_id: 0c1a, host_key: "SHA256:b2", node_id: "", hostname: n1, name: n1}}
    inventory: [n1, n2]
"""

RETURN = r"""
problems:
  description: By name in the inventory the sentences, for hosts that are copies.
  returned: always
  type: dict
emptied:
  description: >-
    The names in the inventory of hosts that are the machines they were, by machine id and SSH host key,
    and have no node id any more, as after a purge.
  returned: always
  type: list
  elements: str
"""

import json
import os

from ansible.module_utils.basic import AnsibleModule

REMEDIES = {
    "node_id": (
        "the node id {0}",
        "delete /etc/edgeorch and /var/lib/edgeorch there, so that it gets an id of its own",
    ),
    "machine_id": (
        "the machine id {0}",
        "run `rm /etc/machine-id && systemd-machine-id-setup` there and restart it",
    ),
    "host_key": (
        "the SSH host key {0}",
        "run `rm /etc/ssh/ssh_host_* && ssh-keygen -A` there and restart its SSH server",
    ),
    "hostname": ("the host name {0}", "give it one of its own by `hostnamectl hostname NAME`"),
    "name": ("the node name {0}", "give it one of its own by edgeorch_name"),
}
"""What may not be the same on two hosts, and what to do."""


def compare(hosts, known):
    """The sentences for each host that is a copy, and what is known from now on.

    Args:
        hosts: name to its values, in the inventory's order.
        known: the same for hosts that have been seen before, where they are in the inventory.
    """
    # A host's own new values count, and who was here before comes before who is new.
    order = [name for name in hosts if name in known] + [name for name in hosts if name not in known]
    result = {name: values for name, values in known.items() if name not in hosts}
    owners = {
        (kind, values[kind]): name for name, values in result.items() for kind in REMEDIES if values.get(kind)
    }
    problems = {}
    for name in order:
        values = {kind: hosts[name].get(kind) or "" for kind in REMEDIES}
        found = [
            (kind, owners[kind, values[kind]])
            for kind in REMEDIES
            if values[kind] and (kind, values[kind]) in owners
        ]
        if found:
            problems[name] = [sentence(kind, values[kind], owner) for kind, owner in found]
            if name in known:
                result[name] = known[name]
            continue
        owners.update({(kind, value): name for kind, value in values.items() if value})
        result[name] = values
    return problems, result


def emptied(hosts, known):
    """The hosts that are the machines they were, but for their node id: nobody else has it now."""
    same = ("machine_id", "host_key", "name")
    return [
        name
        for name, values in hosts.items()
        if name in known
        and not values.get("node_id")
        and all(values.get(kind) and values[kind] == known[name].get(kind) for kind in same)
    ]


def sentence(kind, value, owner):
    """What is the same, and what to do."""
    what, remedy = REMEDIES[kind]
    return f"it has {what.format(value)} of {owner} (a copied disk?): {remedy}"


def read(path):
    """What earlier plays have seen; nothing where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
    except FileNotFoundError:
        return {}
    except ValueError:
        raise ValueError(f"{path} is damaged: delete it, the next run makes it anew") from None
    return known


def main():
    """Answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "hosts": {"type": "dict", "required": True},
            "inventory": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    try:
        before = read(path)
        known = {name: values for name, values in before.items() if name in module.params["inventory"]}
        problems, after = compare(module.params["hosts"], known)
        if after != before and not module.check_mode:
            with open(path + ".new", "w", encoding="utf-8") as file:
                json.dump(after, file, indent=1, sort_keys=True)
            os.replace(path + ".new", path)
    except ValueError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{path}: {error.strerror}: make it writable, or free some space")
    # A note of what was seen is no change of what the play is about.
    module.exit_json(changed=False, problems=problems, emptied=emptied(module.params["hosts"], known))


if __name__ == "__main__":
    main()
