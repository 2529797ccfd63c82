"""``edgeorch doctor``: what is wrong with this machine's node, and what to do."""

from dataclasses import asdict
from pathlib import Path

import click

from edgeorch import config
from edgeorch.cli import options, show
from edgeorch.errors import ConfigError


@click.command(
    epilog="""\b
Examples:
  edgeorch doctor
  edgeorch doctor --config ./node.toml --json

Exit code 1 when something is broken; a warning is not. Changes nothing."""
)
@click.option("--config", "path", type=click.Path(path_type=Path), help=f"Default: {config.DEFAULT_PATH}.")
@options.as_json
def doctor(path: Path | None, *, as_json: bool) -> int:
    """Check this machine's node: configuration, certificates, ports, network, Docker, disk, answers."""
    from edgeorch.cli.checks import CHECKS, Finding

    try:
        loaded = config.load(path)
    except ConfigError as error:
        findings = [Finding("configuration", "failed", error.detail, error.hint or "correct the file")]
    else:
        where = str(loaded.path) if loaded.path else f"no {config.DEFAULT_PATH}: defaults"
        findings = [Finding("configuration", "ok", where)]
        findings += [finding for check in CHECKS for finding in check(loaded)]
    if as_json:
        show.json_line([asdict(finding) for finding in findings])
    else:
        rows = [(finding.check, finding.state, finding.detail, finding.fix) for finding in findings]
        show.table(("CHECK", "STATE", "WHAT", "FIX"), rows)
    return 1 if any(finding.state == "failed" for finding in findings) else 0
