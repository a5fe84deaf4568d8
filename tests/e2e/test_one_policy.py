"""What is trained is what samples, what is saved and what is evaluated: one LoRA run, from samples to figures."""

import json
import shlex
import subprocess
from pathlib import Path

import jobs
import numpy as np
import pytest
from PIL import Image

from realad_verl.evaluate.records import load_map
from realad_verl.evaluate.store import read_rows
from realad_verl.localize import Localizer
from realad_verl.tiny import tiny_model_dir
from realad_verl.verl_ext.job.export import exported_once

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]

STEPS, TOLERANCE = 6, 1e-5
SETTINGS = (
    f"trainer.total_training_steps={STEPS}",
    "trainer.save_freq=1",
    # Large enough that the base's answers differ.
    "actor_rollout_ref.actor.optim.lr=0.01",
    "realad.log.every=1",
    "realad.log.samples=64",
)


def difference(record: dict, image: Image.Image, localizer: Localizer) -> float:
    """Largest difference of a logged sample's evidence from what ``localizer`` reads of the same tokens."""
    (found,) = localizer.explain([image], [record["response_ids"]])
    pairs = [] if found.jaccard is None else [(record["jaccard"], found.jaccard)]
    for got, want in zip(record["tokens"], found.tokens, strict=True):
        pairs += [(got["s_t"], want.s_t), (got["s_i"], want.s_i), (got["weight"], want.weight)]
    if found.grid_map is not None:
        pairs += zip(sum(record["grid_map"], []), found.grid_map.flatten().tolist(), strict=True)
    return max((abs(got - want) for got, want in pairs), default=0.0)


def evaluate(folder, images, model, engine: str) -> dict[str, dict]:
    """The rows of `realad evaluate`, by image."""
    command = [*jobs.REALAD, "evaluate", "folder", "--root", str(images), "--model", str(model), "--out", str(folder)]
    command += ["--engine", engine, "--image-size", "168", "--max-new-tokens", "64", "--limit", "12", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=jobs.environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return {row["id"]: row for row in read_rows(folder)}


def grid_map(folder, row: dict) -> np.ndarray:
    return load_map(folder / row["map"], row["map_scale"])


def check_actor(run: jobs.Run) -> None:
    """The samples of the last step were made by the weights of the checkpoint before it."""
    paths = sorted((run.folder / "samples" / f"step_{STEPS:06d}").glob("*.json"))
    logged = [(json.loads(path.read_text()), Image.open(path.with_suffix(".png"))) for path in paths]
    before = exported_once(run.folder / f"global_step_{STEPS - 1}")
    exported, base = Localizer.from_pretrained(before.out), Localizer.from_pretrained(tiny_model_dir())
    found = [difference(record, image, exported) for record, image in logged]
    print(f"{len(found)} samples of the actor: within {max(found):.1e}")
    assert len(found) == 64 and max(found) <= TOLERANCE
    assert sum(difference(record, image, base) > 1e-4 for record, image in logged) >= 32


def test_one_policy(tmp_path, prepared, monkeypatch):
    monkeypatch.setattr(jobs, "RECIPE", "local/cgro_tiny_cpu_lora")
    run = jobs.train(tmp_path / "run", prepared, *SETTINGS, limit=1500)
    assert run.returncode == 0, run.stderr[-3000:]
    assert f"--model {run.folder}" in run.stderr
    correlations = [values["training/rollout_actor_probs_pearson_corr"] for values in run.steps().values()]
    print("rollout and actor:", correlations)
    assert len(correlations) == STEPS and min(correlations) >= 0.9999
    check_actor(run)

    images = prepared.parent / "folder"
    rows = {engine: evaluate(tmp_path / engine, images, run.folder, engine) for engine in ("transformers", "vllm")}
    base = evaluate(tmp_path / "base", images, "tiny", "transformers")
    one, two = rows.values()
    assert one.keys() == two.keys() == base.keys() and len(one) == 12
    for name, row in one.items():
        assert row["response"] == two[name]["response"], name
        assert row["pred_score"] == pytest.approx(two[name]["pred_score"], abs=TOLERANCE)
        if row["map"] is not None:
            first, second = grid_map(tmp_path / "transformers", row), grid_map(tmp_path / "vllm", two[name])
            np.testing.assert_allclose(first, second, atol=TOLERANCE)
    assert sum(row["pred_score"] != pytest.approx(base[name]["pred_score"], abs=1e-4) for name, row in one.items()) > 6


def commands_of_quickstart() -> list[list[str]]:
    """The three commands as the page has them, and the one that prepares, each as a list of words."""
    page = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text()
    section = page.split("## Train and evaluate")[1].split("`--model` takes")[0]
    lines = [line for block in section.split("```")[1::2] for line in block.strip().splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


def test_quickstart_as_written(tmp_path):
    """Prepare, train, evaluate, report: what the page says, on procedural images of the name that it uses."""
    for name, seed in (("my_images", "3"), ("my_test_images", "4")):
        made = ["tiny", "images", "--out", str(tmp_path / name), "--count", "32", "--seed", seed]
        subprocess.run([*jobs.REALAD, *made], check=True, timeout=600, capture_output=True, env=jobs.environment())
    words = commands_of_quickstart()
    assert [command[:2] for command in words] == [
        ["realad", name] for name in ("prepare", "train", "evaluate", "report")
    ]
    for command in words:
        done = subprocess.run(
            [*jobs.REALAD, *command[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=2400,
            env=jobs.environment(),
        )
        assert done.returncode == 0, (command, done.stderr[-3000:])
    results = json.loads((tmp_path / "runs" / "after" / "results.json").read_text())
    assert results["settings"]["model"].endswith("runs/mine/exported/global_step_20")
    assert (tmp_path / "report.html").stat().st_size > 100_000
