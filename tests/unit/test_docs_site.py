"""The site of `make docs`: a page of its own for each document and command; links that hold in both places."""

import inspect
import sys
from pathlib import Path

import pytest
import typer
import yaml
from griffe import Docstring, parse_google

from realad_verl.cli import COMMANDS, app
from realad_verl.method.config import ScoringConfig

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import docs_site  # noqa: E402
from docs_docstrings import as_markdown  # noqa: E402

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def _commands(command, words: str) -> list:
    """(name as typed, command) of a command and what is below it."""
    below = [
        found for name, sub in getattr(command, "commands", {}).items() for found in _commands(sub, f"{words} {name}")
    ]
    return [(words, command), *below]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page_with_all_its_options(name):
    config = docs_site.on_config(type("Config", (), {"nav": CONFIG["nav"]})())
    assert {f"realad {name}": f"commands/{name}.md"} in next(e["Commands"] for e in config.nav if "Commands" in e)
    page = docs_site.command_page(name)
    for words, command in _commands(typer.main.get_command(app).commands[name], f"realad {name}"):
        assert f"# `{words}`\n" in page
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                assert "**Arguments**" in page, words
            elif not parameter.hidden:
                assert any(f"`{option}" in page for option in parameter.opts), f"{words}: {parameter.opts}"


@pytest.mark.parametrize(
    ("page", "target", "file", "site"),
    [
        ("index.md", "docs/method.md", "docs/method.md", "method.md"),
        ("reliability.md", "../SECURITY.md", "SECURITY.md", "SECURITY.md"),
        ("cluster.md", "../recipes/launch/slurm.sbatch", "recipes/launch/slurm.sbatch", "recipes/launch/slurm.sbatch"),
        ("api/method.md", "../method.md", "docs/method.md", "method.md"),
        ("faq.md", "../README.md", "README.md", "index.md"),
    ],
)
def test_links(page, target, file, site):
    assert docs_site.repository_path(page, target) == file
    assert docs_site.site_path(file) == site


def test_formulas_are_pictures_that_name_their_source():
    text = r'<td><span class="arithmatex">\(\lvert S_T\rvert &lt; 1\)</span></td>'
    picture = docs_site.on_page_content(text, *[None] * 3)
    assert r'aria-label="\lvert S_T\rvert &lt; 1"' in picture and picture.count("<path") == 6


def test_settings_of_a_docstring_are_a_list():
    """Griffe takes the first of them for the title of a box."""
    text = inspect.cleandoc(ScoringConfig.__doc__ or "")
    assert parse_google(Docstring(text))[1].kind.value == "admonition"
    assert [section.kind.value for section in parse_google(Docstring(as_markdown(text)))] == ["text"]
    assert "\n- **tau_t, tau_i**: thresholds" in as_markdown(text)


def test_doctests_of_a_docstring_are_blocks():
    text = "One.\n\n>>> f(1)\n2\n>>> f(2)\n3\n\nIn verl's config::\n\n    a: 1"
    assert as_markdown(text) == "One.\n\n```pycon\n>>> f(1)\n2\n>>> f(2)\n3\n```\n\nIn verl's config:\n\n    a: 1"


def test_functions_under_args_stay_sections():
    text = "Reads.\n\nArgs:\n    a: one\n        more.\nRaises:\n    ValueError: never."
    assert [section.kind.value for section in parse_google(Docstring(as_markdown(text)))][1:] == [
        "parameters",
        "raises",
    ]
