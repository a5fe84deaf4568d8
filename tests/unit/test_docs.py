"""What the documents name exists: links, commands and options, recipes, functions, tests, defaults."""

import ast
import importlib
import re
from pathlib import Path

import pytest
import typer
import yaml

from realad_verl.cli import app
from realad_verl.method.config import MethodConfig
from realad_verl.recipes_dir import list_recipes

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
by_name = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def _code(text: str) -> str:
    """Fenced blocks and inline code, continuation lines joined."""
    parts = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) + re.findall(r"(?<!`)`([^`]+)`(?!`)", text)
    return "\n".join(parts).replace("\\\n", " ")


@by_name
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not target.startswith(("http", "mailto")):
            name, _, anchor = target.partition("#")
            path = document.parent / name if name else document
            assert path.exists(), f"{document.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
                slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in slugs, f"{document.name}: {target}"


@by_name
def test_commands_and_options_exist(document):
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"(?:^|/|\s)realad ([^\n#|]*)", _code(document.read_text())):
        words = line.split()
        if not words or not re.fullmatch(r"[a-z]+", words[0]):
            continue
        assert words[0] in commands, f"{document.name}: realad {line}"
        command = commands[words[0]]
        if hasattr(command, "commands") and len(words) > 1 and words[1] in command.commands:
            command = command.commands[words[1]]
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        for option in re.findall(r"(?<=\s)--[a-z][a-z-]*", line.split("&&")[0].split(";")[0]):
            assert option in known, f"{document.name}: realad {line}: {option}"


@by_name
def test_python_blocks_compile_and_import_what_exists(document):
    for block in re.findall(r"^```python\n(.*?)^```", document.read_text(), re.M | re.S):
        imports = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), document.name, "exec"), {})


def _pages(nav: list) -> list[str]:
    entries = [value for entry in nav for value in entry.values()]
    return [page for entry in entries for page in (_pages(entry) if isinstance(entry, list) else [entry])]


def test_every_document_is_in_the_navigation_of_the_site():
    docs = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    docs |= {"index.md" if path.name == "README.md" else path.name for path in ROOT.glob("*.md")}
    pages = _pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(pages) == len(set(pages))
    assert docs - set(pages) == set(), "add to nav in mkdocs.yml"
    assert set(pages) - docs == set(), "not there; take out of nav in mkdocs.yml"


@by_name
def test_recipes_exist(document):
    for recipe in re.findall(r"realad (?:train|check) ([a-z]+/\w+)", document.read_text()):
        assert recipe in list_recipes(), f"{document.name}: {recipe}"


def test_functions_of_the_method_exist():
    code = _code((ROOT / "docs" / "method.md").read_text())
    names = re.findall(r"^((?:method|attention|reward_fns)\.\w+)\.(\w+)$", code, re.M)
    assert len(names) >= 15
    for module, name in names:
        module = module if module.startswith("reward_fns") else f"realad_verl.{module}"
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_defaults_of_the_method():
    settings, text = MethodConfig().to_dict(), (ROOT / "docs" / "method.md").read_text()
    compared = 0
    for names, values in re.findall(r"^\| (`(?:scoring|map|consistency)\.[^|]+) \| ([^|]+) \|", text, re.M):
        keys = re.findall(r"`(\w+)\.(\w+)`", names)
        stated = [yaml.safe_load(v.strip().strip("`")) for v in values.split(",")]
        assert [settings[section][key] for section, key in keys] == stated, names
        compared += len(keys)
    assert compared == sum(len(settings[section]) for section in ("scoring", "map", "consistency"))


def test_tests_named_as_proof_exist():
    text = (ROOT / "docs" / "reliability.md").read_text()
    files = {p.name: p for p in (ROOT / "tests").rglob("test_*.py")}
    source = "\n".join(p.read_text() for p in files.values())
    for path in re.findall(r"`(tests/[\w/]+\.py)", text):
        assert (ROOT / path).is_file(), path
    for name in re.findall(r"\b(test_\w+)\b(?!\.py)", text):
        assert f"def {name}(" in source, name


ROOMS = "attention|backbones|calibrate|calibration|commands|data|evaluate|evidence|localize|localize_files|method"
ROOMS += "|models|report|tiny|verl_ext|reward_fns"
FILES = (".py", ".md", ".yaml", ".json", ".jsonl", ".html", ".png", ".safetensors")
NAMED = re.compile(rf"`+(?:realad_verl\.)?((?:{ROOMS})(?:\.[A-Za-z_]\w*)+)(?:\(\))?`+")
SOURCES = sorted(p for folder in ("realad_verl", "reward_fns") for p in (ROOT / folder).rglob("*.py"))


def _exists(name: str) -> bool:
    """Whether a dotted name is a module of ours, or an attribute of one; of a class, what its source names."""
    full = name if name.startswith("reward_fns") else f"realad_verl.{name}"
    parts = full.split(".")
    for cut in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:cut])
        path = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        if path.is_file():
            source = path.read_text()
            return all(
                re.search(rf"^\s*(?:async )?(?:def|class) {n}\b|^{n}\b|^from .* import .*\b{n}\b", source, re.M)
                for n in parts[cut:]
            )
    return False


@pytest.mark.parametrize("document", [*DOCUMENTS, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_that_are_named_exist(document):
    text = document.read_text()
    if document.suffix == ".py":  # docstrings and comments
        text += " ".join(f"`{n}`" for n in re.findall(r":mod:`realad_verl\.([\w.]+)`", text))
        package = ".".join(document.relative_to(ROOT / document.relative_to(ROOT).parts[0]).parent.parts)
        for name in re.findall(r":mod:`\.([\w.]+)`", text):
            assert _exists(f"{package}.{name}"), f"{document}: .{name}"
    for name in NAMED.findall(text):
        of_verl = re.fullmatch(r"data\.\w+", name)  # such as data.train_files, a key of verl's configuration
        assert of_verl or name.endswith(FILES) or _exists(name), f"{document}: {name}"
