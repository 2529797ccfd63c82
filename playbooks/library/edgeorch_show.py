#!/usr/bin/python
"""Text on the controller's terminal; the work is done by the action plugin of this name."""

DOCUMENTATION = r"""
module: edgeorch_show
short_description: Print a table as it is, not as JSON
description:
  - Prints rows in columns, whatever the output format of Ansible is.
options:
  columns:
    description: Heads of the columns, and the keys of the rows in lower case, with underscores for spaces.
    type: list
    elements: str
    required: true
  rows:
    description: A dict for each row; what is missing or empty is shown as a dash.
    type: list
    elements: dict
    required: true
author: edgeorch
"""

EXAMPLES = r"""
- name: Show who is there
  edgeorch_show:
    columns: [NODE, CERT DAYS]
    rows:
      - {node: kitchen, cert_days: 300}
"""

RETURN = r"""
lines:
  description: What was printed.
  returned: always
  type: list
  elements: str
"""
