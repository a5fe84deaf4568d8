"""`realad calibrate` on the tiny backbone: what it writes is used, repeats itself, and continues where it stopped."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from realad_verl.calibration import calibrated_method
from realad_verl.cli import app
from realad_verl.data.procedural import ProceduralDefects
from realad_verl.localize import Localizer
from realad_verl.tiny import tiny_model_dir
from realad_verl.tiny.arch import IMAGE_SIZE
from realad_verl.verl_ext.recipe.compose import compose_recipe


def png(image) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_calibrate_the_tiny_backbone(tmp_path):
    source = ProceduralDefects(IMAGE_SIZE, "shifted", 77)
    samples = [source[i] for i in range(50)]
    rows = [
        {"images": [{"bytes": png(s.image)}], "reward_model": {"ground_truth": ("no", "yes")[s.label]}} for s in samples
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")

    def calibrate(out):
        command = ["calibrate", str(tmp_path), "--model", "tiny", "--out", str(out), "--engine", "transformers"]
        done = CliRunner().invoke(app, [*command, "--n", "3", "--max-new-tokens", "40", "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout[done.stdout.index("{") :])

    out = tmp_path / "calibration"
    first = calibrate(out)
    assert first["images"] == {"normal": 25, "anomalous": 25} and first["number_of_heads"] == 12
    assert first["calibrated"]["auroc"] > first["default"]["auroc"]
    for name in ("calibration.yaml", "calibration.safetensors", "calibration.json", "calibration.png"):
        assert (out / name).stat().st_size > 100

    # a stopped run continues: two of the batches are gone, and the result is the same
    for part in sorted((out / "parts").glob("*.pt"))[5:7]:
        part.unlink()
    again = calibrate(out)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in first.items() if k != "seconds"}

    method = calibrated_method(out)
    composed = compose_recipe(str(out / "calibration.yaml")).realad.method
    assert [tuple(head) for head in composed.readout.heads] == list(method.readout.heads)
    assert yaml.safe_load((out / "calibration.yaml").read_text())["defaults"][0] == "/local/cgro_tiny_cpu"
    found = Localizer.from_pretrained(tiny_model_dir(), method=method, max_new_tokens=40)(
        [Image.fromarray(s.image) for s in samples[:2]]
    )
    assert all(one.anomaly_map is not None and 0 < one.anomaly_map.mean() < 20 for one in found)
