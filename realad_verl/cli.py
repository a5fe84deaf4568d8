"""The ``realad`` command. Each subcommand lives in its own file of ``realad_verl.commands``."""

import importlib
import sys

import typer

from realad_verl import __version__
from realad_verl.errors import UserError

# name -> module under realad_verl.commands; the module's function of the same name is the command.
COMMANDS: tuple[str, ...] = (
    "doctor",
    "check",
    "prepare",
    "train",
    "export",
    "calibrate",
    "localize",
    "tiny",
    "evaluate",
    "report",
    "demo",
)

app = typer.Typer(
    name="realad",
    help="Reasoning-driven anomaly detection and localization: ReAL maps, CGRO training on veRL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"realad_verl {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True)) -> None:
    """Reasoning-driven anomaly detection and localization: ReAL maps, CGRO training on veRL."""


def _register() -> None:
    for name in COMMANDS:
        module = importlib.import_module(f"realad_verl.commands.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            options = getattr(module, "CONTEXT_SETTINGS", None)
            app.command(name, context_settings=options)(getattr(module, name))


_register()


def main() -> None:
    """Entry point: a user's mistake ends as one message and exit code 2, Ctrl-C as 130."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
