"""``realad doctor``: is this machine ready, and is the plugin alive?"""

import json
import sys

import typer

from realad_verl.commands import options

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(as_json: options.AsJson = False) -> None:
    """Print versions against pins, what the plugin registered, devices, Ray; exit 1 if anything is missing."""
    from rich.console import Console
    from rich.table import Table

    from realad_verl.verl_ext.recipe import doctor as parts

    findings = parts.examine()
    report = parts.as_json(findings)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        table = Table("part", "state", "detail", title="realad doctor")
        for finding in findings:
            colour = COLOURS[finding.status]
            table.add_row(finding.name, f"[{colour}]{finding.status}[/{colour}]", finding.detail)
        Console().print(table)
    if not report["ok"]:
        sys.exit(1)
