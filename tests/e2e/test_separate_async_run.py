"""cgro_separate_async on a CPU: one trainer and one rollout process, weights over gloo, two updates between two syncs.

docs/cluster.md says what the mode promises; tests/contract/test_separate_async.py holds what it needs of verl.
"""

import json
import signal
import time

import jobs
import psutil
import pytest
from eager_reference import EagerReference
from jobs import finish
from PIL import Image
from test_backbones import difference
from test_faults import LIMIT, check_goes_on, start_and_wait
from test_validation import NAMES as VALIDATION

from realad_verl.method.config import MethodConfig
from realad_verl.verl_ext.job.export import exported_once
from realad_verl.verl_ext.recipe.compose import compose_recipe

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]

RECIPE, STEPS, UPDATES, PROMPTS, N = "local/cgro_tiny_cpu_async", 4, 2, 4, 4
SETTINGS = (
    f"data.train_batch_size={UPDATES * PROMPTS}",
    f"actor_rollout_ref.rollout.n={N}",
    # Large enough that one update shows in the evidence, small enough that the model goes on answering.
    "actor_rollout_ref.actor.optim.lr=0.001",
    "trainer.save_freq=1",
    "trainer.max_actor_ckpt_to_keep=null",
    "realad.log.every=1",
    f"realad.log.samples={PROMPTS * N}",
)
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def recipe(monkeypatch):
    monkeypatch.setattr(jobs, "RECIPE", RECIPE)


def samples(folder, step: int, update: int):
    """The logged samples of one update of a step, with their images."""
    paths = sorted((folder / "samples" / f"step_{step:06d}.{update}").glob("*.json"))
    return [(json.loads(path.read_text()), Image.open(path.with_suffix(".png"))) for path in paths]


@pytest.mark.parametrize("hybrid", ["false", "true"])
def test_four_steps(train, tmp_path, prepared, hybrid):
    run = train(
        tmp_path / "run",
        prepared,
        *SETTINGS,
        f"actor_rollout_ref.hybrid_engine={hybrid}",
        f"trainer.total_training_steps={STEPS}",
        limit=1500,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert not run.left_over
    assert sorted(run.steps()) == list(range(1, STEPS + 1))
    method = method_of(RECIPE)
    for step, values in run.steps().items():
        print(step, values["training/rollout_actor_probs_pearson_corr"], values["timing_s/update_weights"])
        # The first step's responses are pi_old's own; later ones come from weights that are a sync older.
        assert values["training/rollout_actor_probs_pearson_corr"] >= (0.999 if step == 1 else 0.8)
        assert values["weight_sync/tensors"] > 50
        # verl's score is that of the whole step's batch: a sum, or a mean of means, of ours would not equal it.
        assert values["reward/total/mean"] == pytest.approx(values["critic/score/mean"], abs=1e-5)
        assert values["rollout/dropped"] == 0
    for step in range(2, STEPS + 1):
        check_evidence(run.folder, step, method)


def test_validation_goes_through_the_evidence_pass(train, tmp_path, prepared):
    """On a trainer and a rollout of their own: every figure, and evidence of the weights that the best step keeps."""
    settings = (*SETTINGS, "trainer.total_training_steps=2", "trainer.test_freq=2", "realad.val.best=image_auroc")
    run = train(tmp_path / "run", prepared, *settings, "actor_rollout_ref.hybrid_engine=false", limit=1500)
    assert run.returncode == 0, run.stderr[-3000:]
    assert not run.left_over
    values = run.steps()[2]
    assert set(VALIDATION) <= set(values) and "val/image_auroc" not in run.steps()[1]
    assert values["val/best_step"] == 2 and (run.folder / "best_step.txt").read_text() == "2\n"
    logged = sorted((run.folder / "samples" / "validation_000002").glob("*.json"))
    reference = EagerReference(exported_once(run.folder / "best" / "global_step_2").out, method_of(RECIPE))
    records = [(json.loads(path.read_text()), Image.open(path.with_suffix(".png"))) for path in logged]
    assert len(records) >= 4
    assert max(difference(record, image, reference) for record, image in records) <= TOLERANCE


def method_of(recipe: str) -> MethodConfig:
    return MethodConfig.from_dict(dict(compose_recipe(recipe).realad.method))


def check_evidence(folder, step: int, method: MethodConfig) -> None:
    """Every update of a step has the evidence of pi_old, the weights at the step's start, and of no later ones."""
    old, new = (EagerReference(exported_once(folder / f"global_step_{n}").out, method) for n in (step - 1, step))
    for update in range(UPDATES):
        logged = samples(folder, step, update)
        assert len(logged) == PROMPTS * N and sum(record["jaccard"] is not None for record, _ in logged) >= 4
        from_old = max(difference(record, image, old) for record, image in logged)
        from_new = max(difference(record, image, new) for record, image in logged)
        print(f"step {step} update {update}: {from_old:.1e} from pi_old, {from_new:.1e} from the next weights")
        assert from_old <= TOLERANCE
        assert from_new > 10 * TOLERANCE


@pytest.mark.parametrize("part", ["ray::WorkerDict", "ray::vLLMHttpServer"])
def test_a_side_that_is_killed(tmp_path, prepared, part):
    """kill -9 of the trainer's process, and of the rollout's: one error, nothing left, and the run goes on."""
    folder = tmp_path / "run"
    process = start_and_wait(folder, prepared, *SETTINGS)
    victims = [p for p in psutil.Process(process.pid).children(recursive=True) if _title(p).startswith(part)]
    assert len(victims) == 1, victims
    began = time.monotonic()
    victims[0].send_signal(signal.SIGKILL)
    run = finish(process, folder, LIMIT)
    print(f"{part}: end after {time.monotonic() - began:.1f} s")
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert run.returncode == 1 and len(errors) == 1 and "the run died in" in errors[0], run.stderr[-3000:]
    assert "resume: realad train" in run.stderr
    assert not run.left_over
    check_goes_on(folder, prepared, *SETTINGS)


def _title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""
