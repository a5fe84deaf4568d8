"""Each backbone recipe trains: four steps of CGRO on the real stack with a random tiny model of its family.

What runs is the shipped recipe (LoRA rank 16 with its excluded modules, merging on the way to vLLM, KL loss against the
adapter-free reference, the family's data settings) with the settings of ``local/cgro_tiny_cpu`` on top: device, dtypes,
sdpa without packing, batch sizes and lengths. See tiny_families.py for the models.
"""

import json
import subprocess
from pathlib import Path

import jobs
import pytest
import tiny_families
import yaml
from eager_reference import EagerReference
from PIL import Image

from realad_verl.backbones import BACKBONES
from realad_verl.method.config import MethodConfig
from realad_verl.method.consistency import consistency_score
from realad_verl.recipes_dir import list_recipes, shipped_recipes
from realad_verl.verl_ext.recipe.compose import compose_recipe

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

RECIPES = {
    "backbones/gemma3_12b": "gemma3",
    "backbones/glm4_1v_9b": "glm4v",
    "backbones/idefics3_8b": "idefics3",
    "backbones/internvl3_8b": "internvl",
    "backbones/llava_next_7b": "llava_next",
    "backbones/llava_onevision_7b": "llava_onevision",
    "backbones/mistral_small_3_1_24b": "mistral3",
    "backbones/pixtral_12b": "llava",
    "backbones/qwen2_vl_7b": "qwen2_vl",
    "backbones/qwen3_vl_8b": "qwen3_vl",
    "backbones/smolvlm2_2b": "smolvlm",
}
# What a backbone recipe says of its own, beside the model's path.
KEPT = (
    *(f"actor_rollout_ref.model.{key}" for key in ("lora_rank", "lora_alpha", "lora", "target_modules")),
    "actor_rollout_ref.model.exclude_modules",
    "actor_rollout_ref.actor.use_kl_loss",
    "data.image_patch_size",
)
BATCH, N, STEPS, TOLERANCE = 4, 4, 4, 1e-5


def scaled_down(recipe: str, folder: Path) -> Path:
    """``recipe`` with the platform settings of the local recipe on top, as a recipe file of its own."""
    local = yaml.safe_load((shipped_recipes() / "local" / "cgro_tiny_cpu.yaml").read_text())
    del local["actor_rollout_ref"]["actor"]["use_kl_loss"]
    local["defaults"] = [f"/{recipe}", "_self_"]
    path = folder / "scaled_down.yaml"
    path.write_text("# @package _global_\n" + yaml.safe_dump(local, sort_keys=False))
    return path


def overrides(model: Path) -> list[str]:
    return [
        f"actor_rollout_ref.model.path={model}",
        f"data.train_batch_size={BATCH}",
        # Several tiles of the tiny models.
        "data.max_prompt_length=704",
        "actor_rollout_ref.rollout.max_model_len=768",
        "actor_rollout_ref.rollout.max_num_batched_tokens=4096",
        f"actor_rollout_ref.rollout.n={N}",
        # Large enough that the second step's evidence tells the updated weights from the first ones.
        "actor_rollout_ref.actor.optim.lr=0.01",
        # An update in every step, whatever the rewards of a random model are.
        "actor_rollout_ref.actor.entropy_coeff=0.01",
        "actor_rollout_ref.actor.checkpoint.save_contents=[model]",
        # The reference below merges by itself, from the shard alone.
        "actor_rollout_ref.actor.checkpoint.save_lora_only=false",
        "trainer.max_actor_ckpt_to_keep=null",
        "realad.log.every=1",
        f"realad.log.samples={BATCH * N}",
        f"trainer.total_training_steps={STEPS}",
        "trainer.save_freq=1",
    ]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Prepared images, a third of them wide, a third tall: a micro-batch holds several grids and numbers of tiles."""
    root, size = tmp_path_factory.mktemp("images"), str(tiny_families.IMAGE_SIZE)
    make = ["tiny", "images", "--out", str(root / "folder"), "--count", "24", "--size", size, "--seed", "5"]
    prepare = ["prepare", "folder", "--root", str(root / "folder"), "--out", str(root / "data"), "--size", size]
    subprocess.run([*jobs.REALAD, *make], check=True, timeout=600, capture_output=True, env=jobs.environment())
    boxes = ((0, 0, 224, 100), (30, 0, 140, 224), (0, 0, 224, 224))
    for kind in ("normal", "anomalous"):
        for number, path in enumerate(sorted((root / "folder" / kind).rglob("*.png"))):
            Image.open(path).crop(boxes[number % 3]).save(path)
    prepare += ["--keep-aspect"]
    subprocess.run([*jobs.REALAD, *prepare], check=True, timeout=600, capture_output=True, env=jobs.environment())
    return root / "data"


def samples(run: jobs.Run, step: int) -> list[tuple[dict, Image.Image]]:
    """The logged samples of a step, with their images."""
    paths = sorted((run.folder / "samples" / f"step_{step:06d}").glob("*.json"))
    return [(json.loads(path.read_text()), Image.open(path.with_suffix(".png"))) for path in paths]


def difference(record: dict, image: Image.Image, reference: EagerReference) -> float:
    """Largest difference between a sample's logged evidence and the reference's: J, S_T, S_I, weights and map."""
    want, reasoning = reference.evidence(image, record["response_ids"])
    assert len(record["tokens"]) == len(reasoning)
    assert (record["jaccard"] is None) == (want.jaccard is None)
    assert record["problem"] == want.problem
    pairs = [] if want.jaccard is None else [(record["jaccard"], want.jaccard)]
    for key, values in (("s_t", want.s_t_R), ("s_i", want.s_i_R), ("weight", want.weights_R)):
        pairs += zip((token[key] for token in record["tokens"]), values.tolist(), strict=True)
    if want.anomaly_map_P is not None:
        pairs += zip(sum(record["grid_map"], []), want.anomaly_map_P.tolist(), strict=True)
    return max((abs(got - expected) for got, expected in pairs), default=0.0)


def check_step(run: jobs.Run, step: int, reference: EagerReference, method: MethodConfig, least: int) -> None:
    """Evidence of every sample of a step, at least ``least`` of which have any, and the step's reward, equal what eager
    attention gives."""
    logged = samples(run, step)
    assert len(logged) == BATCH * N
    differences = [difference(record, image, reference) for record, image in logged]
    print(f"step {step}: largest difference {max(differences):.1e}")
    assert max(differences) <= TOLERANCE
    rewards = []
    for record, image in logged:
        want, _ = reference.evidence(image, record["response_ids"])
        expected = consistency_score(want.jaccard, record["gt_label"], record["well_formed"], method.consistency)
        assert record["reward"]["consistency_reward"] == expected
        assert record["reward"]["total"] == pytest.approx(
            expected + record["reward"]["format_reward"] + record["reward"]["accuracy_reward"]
        )
        rewards.append(expected)
    values = run.steps()[step]
    assert values["reward/consistency/mean"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-6)
    assert values["critic/score/mean"] == pytest.approx(values["reward/total/mean"], abs=1e-5)
    assert sum(record["jaccard"] is not None for record, _ in logged) >= least


@pytest.mark.parametrize("recipe", RECIPES)
def test_four_steps(train, tmp_path, images, monkeypatch, recipe):
    model = tmp_path / "model"
    for package in BACKBONES[RECIPES[recipe]].packages:
        pytest.importorskip(package)
    tiny_families.write(RECIPES[recipe], model)
    monkeypatch.setattr(jobs, "RECIPE", str(scaled_down(recipe, tmp_path)))
    shipped = compose_recipe(recipe)
    settings = compose_recipe(jobs.RECIPE, overrides(model))
    for key in KEPT:
        assert select(settings, key) == select(shipped, key), key

    run = train(tmp_path / "run", images, *overrides(model), limit=1500)
    assert run.returncode == 0, run.stderr[-3000:]
    assert not run.left_over
    assert sorted(run.steps()) == list(range(1, STEPS + 1))

    method = MethodConfig.from_dict(select(settings, "realad.method"))
    reference = EagerReference(model, method)
    check_step(run, 1, reference, method, BATCH * N // 2)
    # The comparison sees a wrong image, and weights that are one update old.
    logged = [pair for pair in samples(run, 1) if pair[0]["jaccard"] is not None]
    others = [image for _, image in logged[1:] + logged[:1]]
    assert max(difference(record, image, reference) for (record, _), image in zip(logged, others, strict=True)) > 1e-4
    assert max(difference(record, image, reference) for record, image in samples(run, 2)) > 1e-4
    lora = settings.actor_rollout_ref.model
    shard = run.folder / "global_step_1" / "actor" / "model_world_size_1_rank_0.pt"
    reference.load_lora_checkpoint(shard, lora.lora_alpha / lora.lora_rank)
    check_step(run, 2, reference, method, 1)  # one large update of a random model costs it the format
    # Before, and after 1, 2 and 3 updates: vLLM samples from what the actor has become.
    correlations = [values["training/rollout_actor_probs_pearson_corr"] for _, values in sorted(run.steps().items())]
    print(f"rollout and actor correlate at {correlations}")
    assert len(correlations) == STEPS and min(correlations) >= 0.9999


def select(config, key: str):
    from omegaconf import OmegaConf

    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def test_every_backbone_recipe_is_run():
    assert sorted(RECIPES) == [name for name in list_recipes() if name.startswith("backbones/")]
