#!/usr/bin/python
"""Run a command of edgeorch on the controller, where the fleet's CA is."""

DOCUMENTATION = r"""
module: edgeorch_ca
short_description: Run an edgeorch command on the controller, with the passphrase of the fleet's CA
description:
  - Runs C(edgeorch keys) or C(edgeorch token) and returns the JSON that it prints.
  - The passphrase reaches it through a pipe, so it is in no argument, environment, file or log.
  - In check mode a command that changes something is not run, and reported as a change.
options:
  cli:
    description: How edgeorch is started on this machine.
    type: list
    elements: str
    required: true
  argv:
    description: Command and options.
    type: list
    elements: str
    required: true
  passphrase:
    description: Of the CA's key. Empty where the key has none.
    type: str
    default: ""
  document:
    description: Sent to the command as JSON.
    type: dict
  reads:
    description: Whether the command only reads, and so runs in check mode too.
    type: bool
    default: false
author: edgeorch
"""

EXAMPLES = r"""
- name: Make the fleet's CA
  edgeorch_ca:
    cli: "{{ edgeorch_cli }}"
    argv: [keys, init, --fleet, home, --dir, .edgeorch/home]
    passphrase: "{{ edgeorch_ca_passphrase }}"
"""

RETURN = r"""
answer:
  description: What the command printed.
  returned: when it printed JSON
  type: dict
"""

import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.edgeorch_cli import sentence

LONGEST = 4096
"""Bytes of a passphrase; a pipe holds more than this before anybody reads."""


def changed(answer, otherwise):
    """Whether the command changed something, by its own word where it gives one."""
    if "nodes" in answer:
        return any(node["changed"] for node in answer["nodes"].values())
    return answer.get("changed", otherwise)


def main():
    """The module."""
    module = AnsibleModule(
        argument_spec={
            "cli": {"type": "list", "elements": "str", "required": True},
            "argv": {"type": "list", "elements": "str", "required": True},
            "passphrase": {"type": "str", "default": "", "no_log": True},
            "document": {"type": "dict"},
            "reads": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    wish = module.params
    if module.check_mode and not wish["reads"]:
        module.exit_json(changed=True, answer={})
    argv, passed = [*wish["cli"], *wish["argv"]], []
    if wish["passphrase"]:
        secret = wish["passphrase"].encode() + b"\n"
        if len(secret) > LONGEST or b"\n" in secret[:-1]:
            module.fail_json(msg="edgeorch_ca_passphrase is not one line of at most %d bytes" % LONGEST)
        reading, writing = os.pipe()
        os.write(writing, secret)
        os.close(writing)
        argv += ["--passphrase-file", "/dev/fd/%d" % reading]
        passed = [reading]
    document = None if wish["document"] is None else json.dumps(wish["document"])
    code, out, said = module.run_command(argv, data=document, pass_fds=passed)
    if code:
        module.fail_json(msg=sentence(said), rc=code)
    try:
        answer = json.loads(out) if out.strip() else {}
    except ValueError:
        module.fail_json(msg="edgeorch printed what is not JSON: %.200r" % out)
    module.exit_json(changed=changed(answer, not wish["reads"]), answer=answer)


if __name__ == "__main__":
    main()
