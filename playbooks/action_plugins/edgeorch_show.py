"""Print a table; documented in ``library/edgeorch_show.py``."""

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display


class ActionModule(ActionBase):
    """Runs on the controller and connects to nobody."""

    _VALID_ARGS = frozenset({"columns", "rows"})
    _requires_connection = False

    def run(self, tmp=None, task_vars=None):
        """Print, and return the lines."""
        result = super().run(tmp, task_vars)
        columns, rows = self._task.args["columns"], self._task.args["rows"]
        keys = [column.lower().replace(" ", "_") for column in columns]
        lines = table([columns, *([cell(row.get(key)) for key in keys] for row in rows)])
        for line in lines:
            Display().display(line)
        return dict(result, changed=False, lines=lines)


def cell(value):
    """A value as people write it, on one line."""
    if value is None or value == "":
        return "-"
    text = "%.3g" % value if isinstance(value, float) else str(value)
    return " ".join(text.split())


def table(rows):
    """Lines of aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
