"""``realad doctor``: is this machine ready, and is the plugin alive?"""

import json as jsonlib
import sys
from typing import Annotated

import typer

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Print versions against pins, what the plugin registered, devices, Ray; exit 1 if anything is missing."""
    from rich.console import Console
    from rich.table import Table

    from realad_verl.verl_ext.recipe.doctor import as_json, examine

    findings = examine()
    report = as_json(findings)
    if json:
        typer.echo(jsonlib.dumps(report, indent=1))
    else:
        table = Table("part", "state", "detail", title="realad doctor")
        for finding in findings:
            colour = COLOURS[finding.status]
            table.add_row(finding.name, f"[{colour}]{finding.status}[/{colour}]", finding.detail)
        Console().print(table)
    if not report["ok"]:
        sys.exit(1)
