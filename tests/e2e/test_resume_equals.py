"""A run that was broken off and resumed is the run that was not: same rewards, same weights."""

import shutil

import jobs
import pytest
import torch
from test_training import SMALL, weights

from realad_verl.verl_ext.run_folder.checkpoints import TRACKER, last_complete

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

SETTINGS = (*SMALL, "realad.deterministic=true", "trainer.save_freq=1", "trainer.total_training_steps=4")
SETTINGS += ("trainer.max_actor_ckpt_to_keep=null",)
SAME = ("critic/score/mean", "reward/total/mean", "critic/advantages/max", "actor/entropy", "actor/grad_norm")


@pytest.mark.parametrize("recipe", ["local/cgro_tiny_cpu", "local/cgro_tiny_cpu_lora"])
def test_a_resumed_run_equals_the_unbroken_one(tmp_path, prepared, monkeypatch, recipe):
    """Four steps at once, against two, a break, and two more from the checkpoint: whole, or the adapter alone."""
    monkeypatch.setattr(jobs, "RECIPE", recipe)
    whole = jobs.train(tmp_path / "whole", prepared, *SETTINGS)
    assert whole.returncode == 0, whole.stderr[-3000:]

    # The folder as a break after step 2 leaves it: the checkpoints of steps 1 and 2.
    broken = tmp_path / "broken"
    for step in (1, 2):
        shutil.copytree(whole.folder / f"global_step_{step}", broken / f"global_step_{step}")
    (broken / TRACKER).write_text("2")
    assert last_complete(broken) == 2
    resumed = jobs.train(broken, prepared, *SETTINGS, resume=True)
    assert resumed.returncode == 0, resumed.stderr[-3000:]

    assert sorted(resumed.steps()) == [3, 4]
    for step in (3, 4):
        for key in SAME:
            assert resumed.steps()[step][key] == whole.steps()[step][key], (step, key)
    first, second = weights(whole, 4), weights(resumed, 4)
    assert all("lora_" in name for name in first) == recipe.endswith("_lora")
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
