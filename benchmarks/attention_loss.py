"""Does a loss on the attention, made of image labels alone, teach the tiny backbone where to look?

    python benchmarks/attention_loss.py --out out/attention --variants r1,r1+a --seeds 0,1,2

Each variant trains the shipped warm start on the shifted procedural domain by the small loop of `learning_loop.py` and
is measured on held-out images; masks are for measuring only. A finished run stays in --out (its weights, too) and is
not run again. `attention_loss_report.py` makes the tables. See docs/attention_loss.md.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning import held_out, load
from learning_attention import TaughtEvidences
from learning_loop import LoopConfig, train

from realad_verl.evidence import EvidenceBuilder
from realad_verl.method.attention_loss import RunningBaseline, response_map
from realad_verl.method.attention_loss_config import AttentionLossConfig
from realad_verl.method.config import ConsistencyConfig, MethodConfig, ScoringConfig
from realad_verl.method.spans import answer_token, parse_response
from realad_verl.tiny import tiny_model_dir
from realad_verl.tiny.arch import GRID
from realad_verl.tiny.build import hardware
from realad_verl.tiny.report import answer_label
from realad_verl.tiny.rollout import TinyRollout

BATCH, SAMPLES = 40, 2
# Seeds of the held-out images: test images were looked at for no choice; calibration makes the read-out's baseline.
SEEDS = {"test": 20_888, "validation": 20_001, "calibration": 20_003}
COLUMNS = ("label", "answer", "well_formed", "sampled", "sampled_formed", "score", "jaccard")
READOUTS = ("both", "all", "calibrated")
ON = AttentionLossConfig(weight=1.0)


def variant(name: str, threshold: float) -> dict[str, Any]:
    """LoopConfig's settings of a variant: r1 or cgro, and what is added to it after the plus sign.

    ``threshold``: both deltas of "cgro", between the classes' J on validation images of the warm start.
    """
    base, _, extra = name.partition("+")
    consistency = ConsistencyConfig(delta_1=threshold, delta_2=threshold) if base == "cgro" else ConsistencyConfig()
    settings = {"method": MethodConfig(consistency=consistency), "w_cons": float(base == "cgro")}
    changes: dict[str, dict[str, Any]] = {
        "a": {},
        "a-weight.1": {"weight": 0.1},
        "a-weight.3": {"weight": 0.3},
        "a-power1": {"power": 1.0},
        "a-power2": {"power": 2.0},
        "a-power4": {"power": 4.0},
        "a-baseline-none": {"baseline": "none"},
        "a-baseline-normal": {"baseline": "normal"},
        "a-responses-all": {"responses": "all"},
        "a-normal-none": {"normal": "none"},
        "a-no-labels": {"responses": "all", "normal": "consensus", "baseline_images": "all"},
    }
    if extra in changes:
        return settings | {"attention": dataclasses.replace(ON, **changes[extra])}
    return settings | ({"attention": ON, "variant": extra} if extra else {})


def measure(model: Any, processor: Any, split: str, count: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Per-image lists of answers, and the maps of each read-out [images, P] of the greedy responses.

    "calibrated": every token's row over the word's mean row on normal calibration images (of this model), smoothed.
    """
    rollout = TinyRollout(model, processor)
    baseline = RunningBaseline((GRID, GRID))
    normal = [sample for sample in held_out(SEEDS["calibration"], 160) if not sample.label]
    for start in range(0, len(normal), BATCH):
        for _, ids_R, rows_RP, _ in _read(rollout, normal[start : start + BATCH])[0]:
            baseline.add(ids_R, rows_RP)
    baseline.commit(1.0)
    builders = {
        select: EvidenceBuilder(model.config, rollout.tokenizer, MethodConfig(scoring=ScoringConfig(select=select)))
        for select in ("both", "all")
    }
    out: dict[str, Any] = {name: [] for name in COLUMNS}
    maps: dict[str, list[Any]] = {name: [] for name in READOUTS}
    samples = held_out(SEEDS[split], count)
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        read, texts, scores, plans, rows = _read(rollout, batch)
        drawn = [rollout.text(ids) for ids in rollout.sample(_images(batch), n=SAMPLES, seed=start)]
        formed = [parse_response(text, MethodConfig().spans).well_formed for text in drawn]
        evidence = {select: builder.reduce(plans, rows) for select, builder in builders.items()}
        flat = torch.full((GRID * GRID,), 1.0 / GRID**2)
        calibrated = {
            i: response_map(rows_RP, ids_R, baseline.baseline(ON.min_count), (GRID, GRID), ON)
            for i, ids_R, rows_RP, _ in read
        }
        for i, sample in enumerate(batch):
            out["label"].append(sample.label)
            out["answer"].append(answer_label(texts[i]))
            out["well_formed"].append(parse_response(texts[i], MethodConfig().spans).well_formed)
            out["sampled"].append([answer_label(text) for text in drawn[i * SAMPLES : (i + 1) * SAMPLES]])
            out["sampled_formed"].append(formed[i * SAMPLES : (i + 1) * SAMPLES])
            out["score"].append(scores[i])
            out["jaccard"].append(evidence["both"][i].jaccard)
            for select, found in evidence.items():
                map_P = found[i].anomaly_map_P
                maps[select].append((flat if map_P is None else map_P).numpy())
            maps["calibrated"].append(calibrated.get(i, flat).numpy())
    return out, {name: np.stack(each).astype(np.float32) for name, each in maps.items()}


def _images(samples: list[Any]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(sample.image) for sample in samples])


def _read(rollout: TinyRollout, samples: list[Any]) -> tuple[Any, list[str], list[float], Any, Any]:
    """Greedy responses: (image, token ids, rows, problem) of those with rows; texts, P(yes), plans and all columns."""
    images = _images(samples)
    responses = rollout.sample(images, temperature=0)
    plans, rows, logits, _ = rollout.read(images, responses, MethodConfig())
    words = [rollout.tokenizer.encode(f" {word}")[0] for word in ("no", "yes")]
    scores, given, read = [], iter(rows), []
    for i, (ids, plan) in enumerate(zip(responses, plans, strict=True)):
        at = answer_token([str(rollout.tokenizer.decode([token])) for token in ids], MethodConfig().spans)
        scores.append(0.5 if at is None else logits[i, at, words].softmax(-1)[1].item())
        if plan.request is not None:
            read.append((i, torch.tensor(ids)[plan.reasoning], next(given)[:, : GRID * GRID], None))
    return read, [rollout.text(ids) for ids in responses], scores, plans, rows


def run(name: str, seed: int, args: argparse.Namespace) -> None:
    """Train one variant with one seed, or take its weights if they are there, and measure it."""
    path, weights = args.out / f"{name}-{seed}.json", args.out / "weights" / f"{name}-{seed}.pt"
    (model, processor), (reference, _) = load(args.model), load(args.model)
    rollout = TinyRollout(model, processor)
    cfg = LoopConfig(
        seed=seed, steps=args.steps, prompts=args.prompts, lr=args.lr, kl=args.kl, **variant(name, args.threshold)
    )
    seconds = None
    if weights.exists():
        model.load_state_dict(torch.load(weights))
    elif name != "start":
        evidences = TaughtEvidences(rollout, reference, cfg) if cfg.attention.weight else None
        seconds = train(model, reference, rollout, cfg, path.with_suffix(".jsonl"), evidences)
        torch.save(model.state_dict(), weights)
    measured, maps = measure(model, processor, args.split, args.images)
    np.savez_compressed(path.with_suffix(".npz"), **maps)
    result = {"settings": dataclasses.asdict(cfg), "split": args.split, "cpu_seconds": seconds, "hardware": hardware()}
    path.write_text(json.dumps(result | {"measured": measured}))
    right = np.array(measured["label"]) == np.array(measured["answer"])
    print(f"{name} {seed}: accuracy {right.mean():.3f}, {seconds} CPU s", flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=tiny_model_dir())
    parser.add_argument("--variants", default="start,r1,r1+a")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--kl", type=float, default=0.005)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--threshold", type=float, default=0.151, help="both deltas of cgro, from docs/learning.md")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="choose on validation images")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    (args.out / "weights").mkdir(parents=True, exist_ok=True)
    for seed in args.seeds.split(","):
        for name in args.variants.split(","):
            only_once = name == "start" and seed != args.seeds.split(",")[0]
            if not only_once and not (args.out / f"{name}-{seed}.json").exists():
                run(name, int(seed), args)


if __name__ == "__main__":
    main()
