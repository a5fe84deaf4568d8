"""Backbones that differ most, on two ranks with LoRA: trained, stopped, resumed, exported, and the export run by vLLM.

InternVL cuts an image into tiles; Gemma 3 has token types, sliding windows and one size of image; Mistral 3 has as many
image tokens as the image's own shape asks for. The shards of two ranks become one model by `realad export`; eager
attention of that model is what the next step's evidence has to be.
"""

import json
import subprocess

import jobs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_families
from eager_reference import EagerReference
from test_backbones import BATCH, RECIPES, N, check_step, images, overrides, scaled_down, select  # noqa: F401

from realad_verl.backbones import BACKBONES
from realad_verl.data.rows import SCHEMA
from realad_verl.method.config import MethodConfig
from realad_verl.verl_ext.job.export import exported_once
from realad_verl.verl_ext.recipe.compose import compose_recipe

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("recipe", ["internvl3_8b", "gemma3_12b", "mistral_small_3_1_24b"])
def test_trained_resumed_and_exported(train, tmp_path, images, monkeypatch, recipe):  # noqa: F811
    family, model = RECIPES[f"backbones/{recipe}"], tmp_path / "model"
    for package in BACKBONES[family].packages:
        pytest.importorskip(package)
    tiny_families.write(family, model)
    monkeypatch.setattr(jobs, "RECIPE", str(scaled_down(f"backbones/{recipe}", tmp_path)))
    given = [*overrides(model), "trainer.n_gpus_per_node=2"]
    settings = compose_recipe(jobs.RECIPE, given)
    assert settings.actor_rollout_ref.model.lora_rank > 0

    run = train(tmp_path / "run", images, *given, "trainer.total_training_steps=2", limit=1500)
    assert run.returncode == 0, run.stderr[-3000:]
    run = train(tmp_path / "run", images, *given, "trainer.total_training_steps=3", resume=True, limit=1500)
    assert run.returncode == 0, run.stderr[-3000:]
    assert not run.left_over
    assert sorted(run.steps()) == [1, 2, 3]
    assert (run.folder / "global_step_1" / "actor" / "model_world_size_2_rank_1.pt").is_file()

    method = MethodConfig.from_dict(select(settings, "realad.method"))
    check_step(run, 1, EagerReference(model, method), method, 1)
    check_step(run, 2, EagerReference(exported_once(run.folder / "global_step_1").out, method), method, 1)
    # The resumed job went on from the shards of both ranks.
    exported = exported_once(run.folder / "global_step_2").out
    check_step(run, 3, EagerReference(exported, method), method, 0)
    correlations = [values["training/rollout_actor_probs_pearson_corr"] for _, values in sorted(run.steps().items())]
    print(f"rollout and actor correlate at {correlations}")
    assert min(correlations) >= 0.9999

    folder = images.parent / "folder"
    command = ["evaluate", "folder", "--root", str(folder), "--model", str(exported), "--engine", "vllm"]
    command += ["--limit", "4", "--max-new-tokens", "8", "--device", "cpu", "--out", str(tmp_path / "evaluated")]
    command += ["--image-size", str(tiny_families.IMAGE_SIZE)]
    done = subprocess.run([*jobs.REALAD, *command], capture_output=True, text=True, timeout=900, env=jobs.environment())
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "evaluated" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and not any(row.get("error") for row in rows)


def test_dropped_responses_leave_no_rank_waiting(train, tmp_path, images, monkeypatch):  # noqa: F811
    """A prompt that is too long costs its responses; what verl fills their places with is a micro-batch of its own.

    Without an image in it one rank would not call the vision encoder, whose weights the other waits for.
    """
    tiny_families.write("internvl", tmp_path / "model")
    monkeypatch.setattr(jobs, "RECIPE", str(scaled_down("backbones/internvl3_8b", tmp_path)))
    rows = pq.read_table(images / "train.parquet").to_pylist()[: 2 * BATCH]
    for row in rows[1::BATCH]:  # not the first, which is checked before the start
        row["prompt"][0]["content"] += " again" * 900
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "val"):
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), data / f"{name}.parquet")
    one = ("actor.ppo", "ref.log_prob", "rollout.log_prob")
    given = [
        *overrides(tmp_path / "model"),
        *(f"actor_rollout_ref.{part}_micro_batch_size_per_gpu=1" for part in one),
        "trainer.n_gpus_per_node=2",
        "trainer.total_training_steps=2",
        "realad.watchdog.phase_s=240",
    ]
    run = train(tmp_path / "run", data, *given, limit=1200)
    assert run.returncode == 0, run.stderr[-3000:]
    assert not run.left_over
    steps = run.steps()
    assert sorted(steps) == [1, 2]
    assert sum(values["rollout/dropped"] for values in steps.values()) == 2 * N
