"""The hosts of a fleet, from any of its nodes that lives."""

from __future__ import annotations

import importlib.util
import os

DOCUMENTATION = r"""
name: edgeorch
short_description: The hosts of an edgeorch fleet
description:
  - Asks any living node of a list for all nodes of its fleet, so that an inventory needs no list of hosts.
  - All nodes are in the group C(edgeorch). Further groups are made of state (C(state_alive)), architecture
    (C(arch_arm64)), drivers (C(driver_container)) and labels (C(label_zone_kitchen)).
  - The file's name ends with C(edgeorch.yml) or C(edgeorch.yaml).
  - Needs a token that may read.
options:
  plugin:
    description: Names this plugin.
    type: str
    required: true
    choices: [edgeorch]
  url:
    description:
      - Nodes to ask, each as C(HOST), C(HOST:PORT) or C(https://HOST:PORT); the first that answers is asked.
      - Where it is left out, C(url) of C(~/.config/edgeorch/config.toml), or this machine.
    type: list
    elements: str
    env:
      - name: EDGEORCH_URL
  token:
    description: An API token; where it is left out, C(token) of C(~/.config/edgeorch/config.toml).
    type: str
    env:
      - name: EDGEORCH_TOKEN
  ca:
    description: >-
      The fleet's CA, a PEM file, relative to this inventory; where it is left out, C(ca) of
      C(~/.config/edgeorch/config.toml).
    type: str
    env:
      - name: EDGEORCH_CA
  states:
    description: Only nodes in these states become hosts.
    type: list
    elements: str
    choices: [alive, cordoned, draining, suspect, dead, left]
    default: [alive, cordoned, draining, suspect, dead]
extends_documentation_fragment:
  - constructed
  - inventory_cache
"""

EXAMPLES = r"""
# edgeorch.yml
plugin: edgeorch
url: [kitchen.local, garage.local, attic.local]
ca: ../.edgeorch/home/ca.pem

# Only nodes that take work, with the user to log in as, and a group of those whose certificate ends soon.
plugin: edgeorch
states: [alive]
compose:
  ansible_user: "'pi'"
groups:
  renew: edgeorch_node_cert_days < 60
keyed_groups:
  - key: edgeorch_node_version
    prefix: version
"""

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.utils.unsafe_proxy import wrap_var

try:
    from ansible.template import trust_as_template
except ImportError:  # before 2.19 every text is trusted that is not wrapped

    def trust_as_template(text):
        """The text as it is."""
        return text


GROUP = "edgeorch"
VARIABLES = (
    *("id", "name", "state", "reason", "address", "version", "arch", "os", "cpus", "memory", "drivers"),
    *("limits", "task_isolation", "labels", "slots", "slots_used", "cert_days"),
)


def _said(value):
    """What a node says of itself; nothing in it becomes a template on the controller."""
    if isinstance(value, str):
        # The rest is trusted, for the sake of `ansible-inventory --list`: it marks what is not.
        return (
            wrap_var(value) if any(mark in value for mark in ("{{", "{%", "{#")) else trust_as_template(value)
        )
    if isinstance(value, dict):
        return {_said(name): _said(each) for name, each in value.items()}
    return [_said(each) for each in value] if isinstance(value, list) else value


def _api():
    """What modules use too; a plugin on the controller cannot import it by the name that they have."""
    here = os.path.dirname(os.path.abspath(__file__))
    path = os.path.join(here, os.pardir, "module_utils", "edgeorch_api.py")
    spec = importlib.util.spec_from_file_location("edgeorch_api", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """Hosts, groups and variables out of ``GET /api/v1/nodes``."""

    NAME = "edgeorch"

    def verify_file(self, path):
        """Whether the file's name says that it is for us."""
        return super().verify_file(path) and path.endswith(("edgeorch.yml", "edgeorch.yaml"))

    def parse(self, inventory, loader, path, cache=True):  # noqa: FBT002  Ansible's signature
        """Fill the inventory.

        Raises:
            AnsibleParserError: no node answers, or refuses.
        """
        super().parse(inventory, loader, path, cache)
        config = self._read_config_data(path)
        self.load_cache_plugin()
        key = self.get_cache_key(path)
        use = self.get_option("cache")
        nodes = self._cache.get(key) if use and cache else None
        if nodes is None:
            nodes = self._ask(path, in_file=bool(config.get("ca")))
            if use:
                self._cache[key] = nodes
        self.inventory.add_group(GROUP)
        for node in nodes:
            if node["state"] in self.get_option("states"):
                self._add(node)

    def _ask(self, path, in_file):
        api = _api()
        ca = self.get_option("ca")
        if in_file:
            ca = os.path.join(os.path.dirname(os.path.abspath(path)), os.path.expanduser(ca))
        try:
            fleet = api.Api(self._plain("url"), self._plain("token"), ca)
            return fleet.nodes()
        except api.ApiError as error:
            raise AnsibleParserError("%s: %s" % (path, error)) from None

    def _plain(self, option):
        """The value of an option, which may be a template such as a lookup."""
        value = self.get_option(option)
        return self.templar.template(value) if value else value

    def _add(self, node):
        node = _said(node)
        name = self.inventory.add_host(node["name"], group=GROUP)
        self.inventory.set_variable(name, "ansible_host", node["address"])
        variables = {"edgeorch_node_" + each: node.get(each) for each in VARIABLES}
        variables["edgeorch_node_score"] = node["score"]["value"]
        for variable, value in variables.items():
            self.inventory.set_variable(name, variable, value)
        groups = ["state_" + node["state"], "arch_" + node["arch"]]
        groups += ["driver_" + driver for driver in node["drivers"]]
        groups += ["label_%s_%s" % label for label in node["labels"].items()]
        for group in groups:
            safe = self._sanitize_group_name(group)
            self.inventory.add_group(safe)
            self.inventory.add_child(safe, name)
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)
