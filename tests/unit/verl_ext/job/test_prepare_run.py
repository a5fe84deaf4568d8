"""What `launch.prepare` sets in a run's configuration."""

import os

import pytest

from realad_verl.verl_ext.job.launch import prepare
from realad_verl.verl_ext.names import SEEDED_AGENT_LOOP
from realad_verl.verl_ext.recipe.compose import compose_recipe


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_sampling_on_a_cpu_takes_prompts_whole(tmp_path, monkeypatch, deterministic):
    """vLLM rewinds a seeded request's generator after part of a prompt, and dies where it is a CPU generator."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    options = [f"trainer.default_local_dir={tmp_path / 'run'}", f"realad.deterministic={deterministic}"]
    config = compose_recipe("local/cgro_tiny_cpu", options)
    prepare(config)
    rollout = config.actor_rollout_ref.rollout
    assert (rollout.agent.default_agent_loop == SEEDED_AGENT_LOOP) == deterministic
    assert rollout.enable_chunked_prefill == (not deterministic)
