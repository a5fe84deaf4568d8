"""What `realad train` says at its end."""

import json

from realad_verl.commands.train import next_commands
from realad_verl.verl_ext.run_folder.checkpoints import mark_complete


def test_evaluate_and_report(tmp_path):
    """Data set and size are the prepared data's."""
    data, run = tmp_path / "data", tmp_path / "a run"
    (run / "global_step_6" / "actor").mkdir(parents=True)
    (run / "global_step_6" / "data.pt").write_bytes(b"x")
    data.mkdir()
    (data / "manifest.json").write_text(json.dumps({"dataset": "visa", "settings": {"size": 168}}))
    assert "no checkpoint was saved" in next_commands(run, f"{data}/val.parquet")
    mark_complete(run, 6)
    evaluate, report = next_commands(run, f"{data}/val.parquet").splitlines()
    assert evaluate == (
        f"  realad evaluate visa --root TEST_IMAGES --model '{run}' --out '{run}/evaluation' --image-size 168"
    )
    assert report == f"  realad report '{run}' '{run}/evaluation'"
    assert "evaluate DATASET" in next_commands(run, ["elsewhere/val.parquet"])
