"""`make gpu` cannot run here; what it runs can, on small shapes, with nothing but torch and transformers."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu.py"
# Runs the script, then says what it loaded of the rest of this project's stack.
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
others = ("cv2", "hydra", "ray", "typer", "verl", "vllm")
sys.exit(",".join(name for name in others if name in sys.modules) or 0)
"""


def test_it_runs_on_small_shapes_with_torch_and_transformers_alone(tmp_path):
    options = ["--device", "cpu", "--smoke", "--rounds", "1", "--most-tokens", "128"]
    command = [sys.executable, "-c", RUN, str(SCRIPT), *options, "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert [(p["tokens"], p["sequences"]) for p in result["points"]] == [(64, 1), (128, 1)]
    assert all(p["forward"]["ms"] > 0 and p["over_forward"]["torch"] > 0 for p in result["points"])
    assert "eager" in result["points"][0] and len(result["generation"]) == len(result["update"]) == 2
    assert result["machine"]["card"] is None
