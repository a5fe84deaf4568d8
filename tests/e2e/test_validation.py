"""Validation while training: its figures are those of `realad evaluate`, and the best step outlives the rotation."""

import io
import json
import shutil
import subprocess
from pathlib import Path

import jobs
import pyarrow.parquet as pq
import pytest
from PIL import Image

from realad_verl.evaluate.store import read_json
from realad_verl.verl_ext.run_folder.best import read_best

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]

STEPS = 4
SETTINGS = (
    "data.train_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.optim.lr=0.0003",
    "trainer.save_freq=1",
    "trainer.test_freq=1",
    "trainer.val_before_train=true",
    "trainer.max_actor_ckpt_to_keep=2",
    "realad.val.best=image_auroc",
    "realad.log.every=2",
    "realad.log.samples=4",
)
NAMES = (
    *(f"val/{name}" for name in ("image_auroc", "image_ap", "jaccard_auroc", "well_formed", "without_answer")),
    *(f"val/{name}/{kind}" for name in ("accuracy", "jaccard") for kind in ("normal", "anomalous")),
    *("val/accuracy", "val/format", "val/responses", "val/seconds"),
)


def as_folder(parquet: Path, root: Path) -> Path:
    """The images of a prepared file as the plain layout that `realad evaluate folder` reads."""
    for i, row in enumerate(pq.read_table(parquet).to_pylist()):
        kind = "anomalous" if row["reward_model"]["ground_truth"] == "yes" else "normal"
        (root / kind).mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(row["images"][0]["bytes"])).save(root / kind / f"{i:03d}.png")
    return root


def run_realad(*arguments: str) -> None:
    command = [*jobs.REALAD, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=jobs.environment())
    assert done.returncode == 0, done.stderr[-3000:]


def pictured(folder: Path) -> list[str]:
    """The images of one validation's pictures, by name."""
    return [json.loads(path.read_text())["id"] for path in sorted(folder.glob("*.json"))]


@pytest.mark.parametrize("ranks", [1, 2])
def test_validation_figures_are_those_of_the_exported_best_step(tmp_path, prepared, ranks):
    data, folder = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for name in ("train", "val"):  # more images than the validation split holds: 41, which two ranks do not divide
        table = pq.read_table(prepared / "train.parquet")
        pq.write_table(table.slice(0, 41 if name == "val" else len(table)), data / f"{name}.parquet")
    settings = (*SETTINGS, f"trainer.n_gpus_per_node={ranks}")
    run = jobs.train(folder, data, *settings, f"trainer.total_training_steps={STEPS}", limit=1500)
    assert run.returncode == 0, run.stderr[-3000:]
    steps = run.steps()
    assert sorted(steps) == list(range(STEPS + 1))
    for step, values in steps.items():
        assert not [name for name in NAMES if name not in values], (step, sorted(values))
        assert values["val/responses"] == 41 and values["val/seconds"] > 0
    aurocs = {step: steps[step]["val/image_auroc"] for step in range(1, STEPS + 1)}
    best = read_best(folder)
    print(f"image AUROC by step {aurocs}, best {best}")
    assert best is not None and best.value == max(aurocs.values()) and aurocs[best.step] == best.value
    assert steps[STEPS]["val/best"] == best.value and steps[STEPS]["val/best_step"] == best.step
    assert (folder / "best_step.txt").read_text() == f"{best.step}\n"
    left = sorted(path.parent.name for path in folder.glob("global_step_*/actor"))
    assert left == [f"global_step_{STEPS - 1}", f"global_step_{STEPS}"]  # the rotation took the others
    pictures = [pictured(path) for path in sorted((folder / "samples").glob("validation_*"))]
    assert len(pictures) == STEPS + 1 and len(pictures[0]) == 4 and all(one == pictures[0] for one in pictures)

    run_realad("export", str(folder), "--best", "--out", str(tmp_path / "model"))
    images, out = as_folder(data / "val.parquet", tmp_path / "images"), tmp_path / "evaluation"
    how = ("--engine", "transformers", "--image-size", "168", "--max-new-tokens", "64", "--device", "cpu")
    run_realad("evaluate", "folder", "--root", str(images), "--model", str(tmp_path / "model"), "--out", str(out), *how)
    pooled, values = read_json(out / "results.json")["pooled"], steps[best.step]
    assert values["val/without_answer"] == 0.0, "of such a response `realad evaluate` asks on for a score"
    assert pooled["image"]["image_auroc"] == pytest.approx(values["val/image_auroc"], abs=1e-6)
    assert pooled["image"]["image_ap"] == pytest.approx(values["val/image_ap"], abs=1e-6)
    assert pooled["image"]["image_acc"] == pytest.approx(values["val/accuracy"], abs=1e-6)
    assert pooled["answers"]["well_formed"] == pytest.approx(values["val/well_formed"], abs=1e-6)
    for kind in ("normal", "anomalous"):
        assert pooled["answers"][f"jaccard_{kind}"] == pytest.approx(values[f"val/jaccard/{kind}"], abs=1e-5)

    shutil.rmtree(tmp_path / "model")
    more = jobs.train(folder, data, *settings, f"trainer.total_training_steps={STEPS + 1}", resume=True)
    assert more.returncode == 0, more.stderr[-3000:]
    assert more.steps()[STEPS + 1]["val/best"] >= best.value
