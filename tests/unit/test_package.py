"""The package as a whole: light to import, arrows that point one way, rooms and files that stay small."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
ROOT = TOP / "realad_verl"
LINES, MODULES = 300, 14  # at most: of a file, of a folder (its __init__ not counted)
READING = {"method", "attention", "backbones", "evidence"}
# Who may import whom; a room is a package or module of realad_verl, in verl_ext each of its own. Everyone may import
# errors and the version. A new room needs a line here.
ALLOWED = {
    "errors": set(),
    "method": set(),
    "attention": {"method"},
    "backbones": {"method"},
    "calibration": {"method"},
    "evidence": READING - {"evidence"} | {"calibration"},
    "data": READING,
    "models": READING,
    "localization": {"method"},
    "localize": READING | {"data", "localization", "models"},
    "localize_files": {"data", "localize"},
    "tiny": READING | {"data"},
    "evaluate": READING | {"data", "localize"},
    "calibrate": READING | {"calibration", "data", "localize", "evaluate"},
    "report": {"data", "evaluate"},
    "recipes_dir": set(),
    "reward_fns": {"method"},
    "verl_ext": set(),
    "verl_ext.names": set(),
    "verl_ext.settings": {"method"},
    "verl_ext.repairs": {"backbones", "verl_ext.names"},
    "verl_ext.cpu": {"verl_ext.repairs"},
    "verl_ext.plugin": {"verl_ext.cpu", "verl_ext.repairs"},
    "verl_ext.run_folder": set(),
    "verl_ext.recipe": READING
    | {"calibration", "data", "tiny", "recipes_dir", "verl_ext.names", "verl_ext.plugin", "verl_ext.settings"},
    "verl_ext.train": READING
    | {"data", "evaluate", "report"}
    | {f"verl_ext.{room}" for room in ("names", "plugin", "recipe", "repairs", "run_folder", "settings")},
    "verl_ext.job": {"calibration", "report"}
    | {f"verl_ext.{room}" for room in ("names", "plugin", "recipe", "run_folder", "settings")},
    "commands": READING
    | {"calibrate", "calibration", "data", "localize", "localize_files", "tiny", "evaluate", "report", "recipes_dir"}
    | {f"verl_ext.{room}" for room in ("job", "recipe", "repairs", "run_folder", "settings")},
    "cli": {"commands"},
}


def _modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    paths = [*ROOT.rglob("*.py"), *(TOP / "reward_fns").glob("*.py")]
    return {".".join(p.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__"): p for p in sorted(paths)}


MODULE_PATHS = _modules()


def _imports(path: Path) -> set[str]:
    """What a file imports, at its top or inside a function; a name that is a module counts as that module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            full = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names |= {full[name] if full[name] in MODULE_PATHS else node.module for name in full}
    return names


def _ours(path: Path) -> set[str]:
    return {name for name in _imports(path) if name in MODULE_PATHS}


def _room(module: str) -> str | None:
    """The room of a module; None for realad_verl itself, which holds the version."""
    first, *rest = module.split(".")
    if first != "realad_verl":
        return first
    return ".".join(rest[: 2 if rest[0] == "verl_ext" else 1]) if rest else None


def _circle(arrows: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_import_is_light():
    code = "import sys, realad_verl; print([m for m in ('torch', 'verl', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"


def test_help_is_light():
    code = (
        "import sys, realad_verl.cli; print([m for m in ('torch', 'verl', 'transformers', 'ray') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("room", sorted({_room(module) for module in MODULE_PATHS} - {None}))
def test_arrows_point_one_way(room):
    for module, path in MODULE_PATHS.items():
        if _room(module) == room:
            for name in _ours(path):
                allowed = _room(name) in ALLOWED[room] | {room, "errors", None}
                assert allowed, f"{path.relative_to(TOP)} imports {name}, which {room} may not"


def test_the_arrows_allowed_make_no_circle():
    assert _circle(ALLOWED) == []


def test_no_circle_of_modules():
    """Imports inside functions count too: a circle is a circle when it is hidden."""
    arrows = {module: _ours(path) - {module} for module, path in MODULE_PATHS.items()}
    assert sum(map(len, arrows.values())) > 300
    assert _circle(arrows) == []


def test_only_verl_ext_imports_verl():
    for module, path in MODULE_PATHS.items():
        if not module.startswith("realad_verl.verl_ext"):
            assert not {n for n in _imports(path) if n.split(".")[0] == "verl"}, f"{path} imports verl"


def test_files_are_short():
    lengths = {str(path.relative_to(TOP)): len(path.read_text().splitlines()) for path in MODULE_PATHS.values()}
    assert {name: length for name, length in lengths.items() if length > LINES} == {}


def test_folders_are_small():
    folders: dict[str, int] = {}
    for path in MODULE_PATHS.values():
        folders[str(path.parent.relative_to(TOP))] = folders.get(str(path.parent.relative_to(TOP)), 0) + 1
    assert {name: count - 1 for name, count in folders.items() if count - 1 > MODULES} == {}


def test_test_files_have_names_of_their_own():
    """pytest imports them by their bare names: two of one name end the collection."""
    names = [path.name for path in (ROOT.parent / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
