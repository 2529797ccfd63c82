#!/usr/bin/python
"""What a fleet says of its nodes."""

DOCUMENTATION = r"""
module: edgeorch_node_info
short_description: What a fleet says of its nodes
description:
  - Asks one node for all nodes of its fleet, or for one of them. Changes nothing, in check mode neither.
  - Runs on the controller as well as on a node; it needs nothing but Python.
options:
  name:
    description: Name or id of one node; C(self) is the asked one. All nodes where it is left out.
    type: str
  url:
    description:
      - Node to ask, as C(HOST), C(HOST:PORT) or C(https://HOST:PORT); of several the first that answers.
      - Where it is left out, E(EDGEORCH_URL), C(url) of C(~/.config/edgeorch/config.toml), or this machine.
    type: list
    elements: str
  token:
    description:
      - An API token that may read.
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
    description: Changes nothing anyway.
author: The edgeorch authors
"""

EXAMPLES = r"""
- name: Look at the fleet
  edgeorch_node_info:
  delegate_to: localhost
  register: fleet

- name: Say which certificates end soon
  ansible.builtin.debug:
    msg: "{{ fleet.nodes | selectattr('cert_days', 'lt', 60) | map(attribute='name') | list }}"

- name: Wait until a node takes work
  edgeorch_node_info:
    name: kitchen
    url: [192.168.1.20, 192.168.1.21]
  register: kitchen
  until: kitchen.nodes[0].state == 'alive'
  retries: 10
  delay: 3
"""

RETURN = r"""
nodes:
  description:
    - The nodes as the asked one sees them, by name. Each as C(GET /api/v1/nodes) of the REST API has it.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: The node's id, which it keeps for life.
      type: str
    name:
      description: The node's name.
      type: str
    state:
      description: C(alive), C(cordoned), C(draining), C(suspect), C(dead) or C(left).
      type: str
    score:
      description: C(value), higher is better, and C(reasons).
      type: dict
    address:
      description: Where it is.
      type: str
    version:
      description: Its release of edgeorch.
      type: str
    arch:
      description: Its architecture, such as C(arm64).
      type: str
    drivers:
      description: How it can run services, each with the version of what is behind it.
      type: dict
    limits:
      description: What limits native services, such as C(cgroup:memory).
      type: list
      elements: str
    task_isolation:
      description: What keeps native services out of each other's folders, C(landlock) or C(none).
      type: str
    labels:
      description: Its labels.
      type: dict
    slots:
      description: How many services it runs at a time.
      type: int
    slots_used:
      description: How many it runs now.
      type: int
    cert_days:
      description: How long its certificate still holds.
      type: float
  sample:
    - {name: kitchen, state: alive, arch: arm64, version: 0.1.0, cert_days: 396.2}
url:
  description: The node that was asked.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.edgeorch_api import ARGUMENTS, Api, ApiError


def main():
    """The module."""
    module = AnsibleModule(argument_spec={"name": {"type": "str"}, **ARGUMENTS}, supports_check_mode=True)
    wish = module.params
    try:
        api = Api(wish["url"], wish["token"], wish["ca"])
        nodes = api.nodes(wish["name"])
    except ApiError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, nodes=nodes, url=api.url)


if __name__ == "__main__":
    main()
