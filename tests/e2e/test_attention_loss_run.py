"""The attention loss on the real stack: a rerun is bitwise equal, a resumed run is the unbroken one."""

import shutil

import jobs
import pytest
import torch
from test_training import SMALL, check_same, weights

from realad_verl.verl_ext.run_folder.checkpoints import TRACKER
from realad_verl.verl_ext.train.attention.loss import BASELINE_FILE

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3000)]

LOSS = ("realad.attention_loss.weight=1", "realad.attention_loss.min_count=1", "data.train_batch_size=8")
SETTINGS = (*SMALL, *LOSS, "realad.deterministic=true")
LENGTH = ("trainer.save_freq=1", "trainer.total_training_steps=4")
LORA = ("actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.lora.merge=true")
WATCHED = ("value", "anomalous", "normal", "taught", "peak", "entropy")


def check_learns_from_maps(run: jobs.Run) -> None:
    """The first step only fills the baseline; every later one has targets, a loss, and both alarms."""
    steps = run.steps()
    assert steps[1]["attention_loss/taught"] == 0 and steps[1]["attention_loss/value"] == 0
    for step in (2, 3, 4):
        assert steps[step]["attention_loss/taught"] > 0.5 and steps[step]["attention_loss/value"] > 0
        assert {steps[step][f"attention_loss/alarm_{name}"] for name in ("collapse", "self_confirmation")} <= {0, 1}


def test_where_verl_skips_the_log_prob_pass_the_maps_come_from_the_evidence_pass(tmp_path, prepared):
    bypass = ("algorithm.rollout_correction.bypass_mode=true",)
    run = jobs.train(tmp_path / "run", prepared, *SETTINGS, *bypass, "trainer.total_training_steps=4")
    assert run.returncode == 0, run.stderr[-3000:]
    check_learns_from_maps(run)


@pytest.mark.parametrize("model", [(), LORA], ids=["full", "lora"])
def test_a_rerun_is_equal_and_so_is_a_resumed_run(tmp_path, prepared, model):
    whole, again = (jobs.train(tmp_path / name, prepared, *SETTINGS, *LENGTH, *model) for name in ("whole", "again"))
    assert (whole.returncode, again.returncode) == (0, 0), whole.stderr[-2000:] + again.stderr[-2000:]
    check_learns_from_maps(whole)
    check_same(whole, again, 4)

    broken = tmp_path / "broken"
    for step in (1, 2):
        shutil.copytree(whole.folder / f"global_step_{step}", broken / f"global_step_{step}")
    assert (broken / "global_step_2" / "actor" / BASELINE_FILE).exists()
    (broken / TRACKER).write_text("2")
    resumed = jobs.train(broken, prepared, *SETTINGS, *LENGTH, *model, resume=True)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    for step in (3, 4):
        for name in WATCHED:
            key = f"attention_loss/{name}"
            assert resumed.steps()[step].get(key) == whole.steps()[step].get(key), (step, key)
    first, second = weights(whole, 4), weights(resumed, 4)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
