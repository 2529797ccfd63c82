#!/usr/bin/python
"""Make or revoke an API token in the fleet's folder on the controller."""

DOCUMENTATION = r"""
module: edgeorch_token
short_description: Make or revoke an API token on the controller
description:
  - Keeps the hash in C(tokens.toml) and the text of a new token in C(NAME.token), for its owner only.
  - The text is never part of the result.
options:
  cli:
    description: How edgeorch is started on this machine.
    type: list
    elements: str
    required: true
  folder:
    description: The fleet's folder.
    type: path
    required: true
  name:
    description: Who or what uses the token.
    type: str
    required: true
  role:
    description: What it may do.
    type: str
    choices: [read, submit, admin]
    default: submit
  expires:
    description: When it ends, such as C(90d); never where this is empty.
    type: str
    default: ""
  state:
    description: Whether the token is to exist.
    type: str
    choices: [present, absent]
    default: present
author: edgeorch
"""

EXAMPLES = r"""
- name: Make a token for the build machine
  edgeorch_token:
    cli: "{{ edgeorch_cli }}"
    folder: .edgeorch/home
    name: ci
    expires: 90d
"""

RETURN = r"""
path:
  description: Where the text of the token is, when it was made here.
  returned: always
  type: str
made:
  description: Whether the token was made now.
  returned: always
  type: bool
"""

import json
import os
import re

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.edgeorch_cli import sentence

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")


class Tokens:
    """The tokens in one folder."""

    def __init__(self, module):
        self.module = module
        self.file = os.path.join(module.params["folder"], "tokens.toml")

    def call(self, command, *options):
        """What ``edgeorch token COMMAND`` prints."""
        argv = [*self.module.params["cli"], "token", command, *options, "--file", self.file]
        code, out, said = self.module.run_command(argv)
        if code:
            self.module.fail_json(msg=sentence(said), rc=code)
        return out

    def find(self, name):
        """The row of a token, or None."""
        if not os.path.exists(self.file):
            return None
        rows = json.loads(self.call("list", "--json"))["tokens"]
        return next((row for row in rows if row["name"] == name), None)


def make(tokens, wish, path, fresh):
    """Make the token. ``fresh`` is there from before the hash is kept until the text is."""
    os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT, 0o600))
    expires = ["--expires", wish["expires"]] if wish["expires"] else []
    text = tokens.call("create", "--name", wish["name"], "--role", wish["role"], *expires)
    with open(fresh, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def main():
    """The module."""
    module = AnsibleModule(
        argument_spec={
            "cli": {"type": "list", "elements": "str", "required": True},
            "folder": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "role": {"type": "str", "choices": ["read", "submit", "admin"], "default": "submit"},
            "expires": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    wish = module.params
    name = wish["name"]
    if not NAME.fullmatch(name):
        module.fail_json(msg="%r cannot name a token: use 1 to 63 letters, digits and . _ @ -" % name)
    path = os.path.join(wish["folder"], name + ".token")
    fresh = os.path.join(wish["folder"], "." + name + ".token.new")
    tokens = Tokens(module)
    # A run that was stopped half-way left a hash whose text nobody has.
    unfinished = os.path.exists(fresh)
    known = tokens.find(name)
    present = wish["state"] == "present"
    if present and known and not unfinished:
        if known["role"] != wish["role"]:
            module.fail_json(
                msg="the token %r exists with role %s: revoke it first with edgeorch_token_state=absent"
                % (name, known["role"])
            )
        module.exit_json(changed=False, made=False, path=path)
    changed = present or known is not None
    if not module.check_mode:
        if known:
            tokens.call("revoke", name)
        for old in (path, fresh):
            if os.path.exists(old):
                os.unlink(old)
        if present:
            make(tokens, wish, path, fresh)
    module.exit_json(changed=changed, made=present and not module.check_mode, path=path)


if __name__ == "__main__":
    main()
