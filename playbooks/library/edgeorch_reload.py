#!/usr/bin/python
"""Have a node read its keys again, and wait until it uses them."""

DOCUMENTATION = r"""
module: edgeorch_reload
short_description: Reload the node of this host and wait until it serves the certificate in its folder
description:
  - A node that is not running is left alone; it reads its keys when it starts.
  - A reload neither restarts the node nor ends a connection.
options:
  folder:
    description: Where C(node.pem) is.
    type: path
    default: /etc/edgeorch/pki
  port:
    description: The REST port, which serves the node's certificate; 0 does not wait.
    type: int
    default: 56001
  timeout_s:
    description: How long the node may take.
    type: int
    default: 30
author: edgeorch
"""

EXAMPLES = r"""
- name: Reload edgeorch
  edgeorch_reload:
"""

RETURN = r"""
running:
  description: Whether there was a node to reload.
  returned: always
  type: bool
"""

import os
import socket
import ssl
import time

from ansible.module_utils.basic import AnsibleModule

UNIT = "edgeorch.service"
END = "-----END CERTIFICATE-----"


def served(port):
    """The certificate that the node shows to a new connection, as DER; None while it takes none."""
    context = ssl.create_default_context()
    # Compared with the file, which says more than a valid chain.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        plain = socket.create_connection(("127.0.0.1", port), timeout=5)
        with plain, context.wrap_socket(plain) as secure:
            return secure.getpeercert(binary_form=True)
    except (OSError, ValueError):
        return None


def own(path):
    """The node's certificate in its file, as DER."""
    with open(path, encoding="ascii") as file:
        first = file.read().partition(END)[0]
    return ssl.PEM_cert_to_DER_cert(first.strip() + "\n" + END)


def main():
    """The module."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "default": "/etc/edgeorch/pki"},
            "port": {"type": "int", "default": 56001},
            "timeout_s": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    if module.run_command(["systemctl", "is-active", "--quiet", UNIT])[0]:
        module.exit_json(changed=False, running=False)
    if module.check_mode:
        module.exit_json(changed=True, running=True)
    code, _, said = module.run_command(["systemctl", "reload", UNIT])
    if code:
        module.fail_json(msg="edgeorch cannot be reloaded: %s" % said.strip())
    port, path = module.params["port"], os.path.join(module.params["folder"], "node.pem")
    if port:
        wanted, end = own(path), time.monotonic() + module.params["timeout_s"]
        while served(port) != wanted:
            if time.monotonic() > end:
                module.fail_json(
                    msg="edgeorch does not use its new certificate %d s after a reload: "
                    "`journalctl -u edgeorch -n 20` on the host says why" % module.params["timeout_s"]
                )
            time.sleep(0.1)
    module.exit_json(changed=True, running=True)


if __name__ == "__main__":
    main()
