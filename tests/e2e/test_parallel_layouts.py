"""HSDP, Ulysses and packed micro-batches of changing size, as whole jobs, against one padded rank.

Packed sequences run on the reference kernel in flash-attn's place (packed_job.py).
"""

import os
import sys
from pathlib import Path

import jobs
import pytest
from jobs import cluster
from safetensors.torch import load_file
from test_training import SMALL

from realad_verl.tiny import tiny_model_dir
from realad_verl.verl_ext.job.export import exported_once

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

STEPS = 3
SETTINGS = (
    *SMALL,
    "realad.deterministic=true",
    f"trainer.total_training_steps={STEPS}",
    f"trainer.save_freq={STEPS}",
    "actor_rollout_ref.actor.use_kl_loss=true",
)
ACTOR, REF, ROLLOUT = (f"actor_rollout_ref.{part}" for part in ("actor", "ref", "rollout"))
# What the GPU recipes have: packs up to a number of tokens instead of a number of padded sequences.
PACKED = (
    "actor_rollout_ref.model.use_remove_padding=true",
    f"{ACTOR}.use_dynamic_bsz=true",
    f"{ACTOR}.ppo_max_token_len_per_gpu=512",
    *(f"{part}.log_prob_use_dynamic_bsz=true" for part in (REF, ROLLOUT)),
    *(f"{part}.log_prob_max_token_len_per_gpu=512" for part in (REF, ROLLOUT)),
)
ULYSSES = tuple(f"{part}.ulysses_sequence_parallel_size=2" for part in (ACTOR, REF))


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory, prepared):
    run = jobs.train(tmp_path_factory.mktemp("single") / "run", prepared, *SETTINGS)
    assert run.returncode == 0, run.stderr[-3000:]
    return run


@pytest.fixture()
def reference_kernel(monkeypatch):
    """Environment of a job on the reference kernel."""
    here = Path(__file__).parent
    monkeypatch.setattr(jobs, "REALAD", [sys.executable, str(here / "packed_cli.py")])
    paths = [str(here), str(here.parent / "contract"), os.environ.get("PYTHONPATH", "")]
    return {"VERL_USE_EXTERNAL_MODULES": "packed_job", "PYTHONPATH": os.pathsep.join(paths)}


def check_close(one: jobs.Run, other: jobs.Run) -> None:
    """Rewards and J equal at every step; what the training did to the weights equal to 2 % of it."""
    for step in range(1, STEPS + 1):
        a, b = one.steps()[step], other.steps()[step]
        for key in ("reward/total/mean", "reward/consistency/mean", "evidence/jaccard/mean", "actor/entropy"):
            assert a[key] == pytest.approx(b[key], abs=1e-4), (step, key)
        assert b["training/rollout_actor_probs_pearson_corr"] >= 0.9999
    before = load_file(tiny_model_dir() / "model.safetensors")
    after, others = (load_file(exported_once(run.folder).out / "model.safetensors") for run in (one, other))
    assert before.keys() == after.keys() == others.keys()
    moved = sum((after[name] - before[name]).square().sum() for name in after).sqrt()
    apart = sum((after[name] - others[name]).square().sum() for name in after).sqrt()
    print(f"weights moved by {moved:.2e}, apart by {apart:.2e}")
    assert moved > 1e-3 and apart <= 0.02 * moved


def test_two_nodes_of_two_ranks_with_hsdp(train, tmp_path, prepared, one_rank):
    """Shards over the two ranks of a node, copies over the nodes."""
    with cluster(gpus=2) as made:
        layout = ["trainer.nnodes=2", "trainer.n_gpus_per_node=2", f"{ACTOR}.fsdp_config.fsdp_size=2"]
        layout += [
            f"{part}_micro_batch_size_per_gpu=4" for part in (f"{ACTOR}.ppo", f"{REF}.log_prob", f"{ROLLOUT}.log_prob")
        ]
        run = train(tmp_path / "run", prepared, *SETTINGS, *layout, address=made.address, limit=1500)
    assert run.returncode == 0, run.stderr[-3000:]
    check_close(one_rank, run)


@pytest.mark.parametrize("layout", [(), (*ULYSSES, "trainer.n_gpus_per_node=2")], ids=["one_rank", "ulysses"])
def test_packed_micro_batches(train, tmp_path, prepared, one_rank, reference_kernel, layout):
    run = train(tmp_path / "run", prepared, *SETTINGS, *PACKED, *layout, env=reference_kernel, limit=1500)
    assert run.returncode == 0, run.stderr[-3000:]
    check_close(one_rank, run)
