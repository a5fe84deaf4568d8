"""The package as a whole: light to import, arrows that point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "realad_verl"
# Who may import whom inside realad_verl; a package missing here may import nothing but errors.
ALLOWED = {
    "method": set(),
    "attention": {"method"},
    "backbones": {"method"},
    "data": {"method", "attention", "backbones", "evidence", "localize"},
}


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


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


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_arrows_point_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        for name in _imports(path):
            parts = name.split(".")
            if parts[0] == "realad_verl" and len(parts) > 1:
                assert parts[1] in ALLOWED[package] | {package, "errors"}, f"{path.name} imports {name}"


def test_only_verl_ext_imports_verl():
    for path in ROOT.rglob("*.py"):
        if "verl_ext" in path.parts:
            continue
        assert not {name for name in _imports(path) if name.split(".")[0] == "verl"}, f"{path} imports verl"
