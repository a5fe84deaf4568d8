"""Does training with image-level labels teach the tiny backbone, and does the consistency reward add to it?

    python benchmarks/learning.py --out out/learning [--variants r1,cgro] [--seeds 0,1,2] [--steps 100]
    python benchmarks/learning.py --out out/learning --calibration DIR --variants r1,cgro,calibrated,calibrated-gated

DIR is made by `realad calibrate` of the warm start on images of the shifted domain (any seed but the two below); then
every model is measured with its read-out, too.

Starts from the shipped warm start and trains on the shifted domain (labels only) by the small GRPO loop of
``learning_loop.py``. Every run that has finished stays in --out and is not run again, so a stopped benchmark goes on
where it was. Thresholds are chosen on validation images; test images are only measured. See docs/learning.md.
"""

import argparse
import dataclasses
import itertools
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_loop import LoopConfig, train
from learning_report import by_surface, comparison, plot, table
from sklearn.metrics import average_precision_score, roc_auc_score
from transformers import AutoModelForImageTextToText, AutoProcessor

from realad_verl.calibration import calibrated_method
from realad_verl.data.procedural import ProceduralDefects, ProceduralSample
from realad_verl.evidence import EvidenceBuilder
from realad_verl.method.anomaly_map import resize_map
from realad_verl.method.config import ConsistencyConfig, MethodConfig, ScoringConfig
from realad_verl.method.spans import answer_token
from realad_verl.tiny import tiny_model_dir
from realad_verl.tiny.arch import IMAGE_SIZE, new_model
from realad_verl.tiny.build import hardware
from realad_verl.tiny.report import answer_label, pixel_auroc, saliency
from realad_verl.tiny.rollout import TinyRollout

SELECTIONS = ("all", "text", "image", "both")
VALIDATION_SEED, TEST_SEED, BATCH, SAMPLES = 20_001, 20_002, 32, 4
SPLITS = {"test": TEST_SEED, "validation": VALIDATION_SEED}


def variants(threshold: float, read_out: MethodConfig | None = None) -> dict[str, tuple[float, MethodConfig]]:
    """Name -> (w_cons, settings). ``threshold``: the J that best parts the classes on validation images.

    ``read_out``: that of a calibration, whose heads, baseline and thresholds the last two variants have.
    """
    calibrated = {"delta_1": threshold, "delta_2": threshold}
    settings = {
        "r1": (0.0, ConsistencyConfig()),
        "cgro": (1.0, ConsistencyConfig()),
        "cgro-calibrated": (1.0, ConsistencyConfig(**calibrated)),
        "cgro-gated": (1.0, ConsistencyConfig(**calibrated, gate="accuracy")),
        "cgro-continuous": (1.0, ConsistencyConfig(form="continuous", gate="accuracy")),
        "cgro-joint": (1.0, ConsistencyConfig(jaccard="joint", form="continuous", gate="accuracy")),
        "cgro-wide": (1.0, ConsistencyConfig(percentile=85.0, form="continuous", gate="accuracy")),
    }
    found = {name: (w_cons, MethodConfig(consistency=of)) for name, (w_cons, of) in settings.items()}
    if read_out is not None:
        gated = dataclasses.replace(read_out.consistency, gate="accuracy", form="continuous")
        found["calibrated"] = (1.0, read_out)
        found["calibrated-gated"] = (1.0, dataclasses.replace(read_out, consistency=gated))
    return found


def load(folder: Path) -> tuple[Any, Any]:
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def held_out(seed: int, count: int) -> list[ProceduralSample]:
    source = ProceduralDefects(IMAGE_SIZE, "shifted", seed)
    return [source[i] for i in range(count)]


def measure(
    model: Any,
    processor: Any,
    samples: list[ProceduralSample],
    attention: Any = None,
    read_out: MethodConfig | None = None,
) -> dict[str, Any]:
    """Per-image lists on held-out images, of greedy responses but for "sampled": answers at temperature 1.

    ``attention``: a model to read the maps from instead. ``read_out``: of a calibration, measured beside the defaults.
    """
    rollout = TinyRollout(model, processor)
    reader = rollout if attention is None else TinyRollout(attention, processor)
    out: dict[str, Any] = {name: [] for name in ("label", "answer", "sampled", "score", "jaccard", "length")}
    names = [*SELECTIONS, *(["calibrated"] if read_out is not None else [])]
    out |= {f"{figure}_{name}": [] for name in names for figure in ("auroc", "ap")}
    out |= {"jaccard_calibrated": []} if read_out is not None else {}
    words = [processor.tokenizer.encode(f" {word}")[0] for word in ("no", "yes")]
    configs = {select: MethodConfig(scoring=ScoringConfig(select=select)) for select in SELECTIONS}
    builders = {s: EvidenceBuilder(model.config, rollout.tokenizer, cfg) for s, cfg in configs.items()}
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        images = torch.stack([torch.from_numpy(sample.image) for sample in batch])
        drawn = [answer_label(rollout.text(ids)) for ids in rollout.sample(images, n=SAMPLES, seed=start)]
        responses = rollout.sample(images, temperature=0)
        with torch.no_grad():
            logits, _ = rollout.logits(images, responses)
        plans, rows, _, _ = reader.read(images, responses, configs["both"])
        evidence = {select: builder.reduce(plans, rows) for select, builder in builders.items()}
        if read_out is not None:
            plans, rows, _, _ = reader.read(images, responses, read_out)
            evidence["calibrated"] = EvidenceBuilder(model.config, rollout.tokenizer, read_out).reduce(plans, rows)
            out["jaccard_calibrated"] += [found.jaccard for found in evidence["calibrated"]]
        for i, (sample, ids) in enumerate(zip(batch, responses, strict=True)):
            out["label"].append(sample.label)
            out["answer"].append(answer_label(rollout.text(ids)))
            out["sampled"].append(drawn[i * SAMPLES : (i + 1) * SAMPLES])
            at = answer_token([str(rollout.tokenizer.decode([token])) for token in ids], configs["both"].spans)
            chance = logits[i, at, words].softmax(-1)[1].item() if at is not None else 0.5
            out["score"].append(chance)
            out["jaccard"].append(evidence["both"][i].jaccard)
            out["length"].append(len(ids))
            for name, found in evidence.items():
                auroc, ap = _map_figures(sample, found[i]) if sample.label else (None, None)
                out[f"auroc_{name}"].append(auroc)
                out[f"ap_{name}"].append(ap)
    return out


def _map_figures(sample: ProceduralSample, evidence: Any) -> tuple[float, float]:
    """Pixel AUROC and average precision of one anomalous image; no map counts as chance."""
    if evidence.anomaly_map_P is None:
        return 0.5, float(sample.mask.mean())
    pixels = resize_map(evidence.anomaly_map_P, evidence.grid, sample.mask.shape).numpy()
    ap = average_precision_score(sample.mask.ravel(), pixels.ravel())
    return pixel_auroc(pixels, sample.mask), float(ap)


def summary(measured: dict[str, Any]) -> dict[str, float]:
    label, answer, sampled = (np.array(measured[key]) for key in ("label", "answer", "sampled"))
    jaccard = np.array([np.nan if j is None else j for j in measured["jaccard"]])
    numbers = {
        "accuracy": float((label == answer).mean()),
        "accuracy_sampled": float((label[:, None] == sampled).mean()),
        "said_yes": float((answer == 1).mean()),
        "image_auroc": float(roc_auc_score(label, measured["score"])),
        "image_auroc_sampled": float(roc_auc_score(label, (sampled == 1).mean(1))),
        "jaccard_anomalous": float(np.nanmean(jaccard[label == 1])),
        "jaccard_normal": float(np.nanmean(jaccard[label == 0])),
        "length": float(np.mean(measured["length"])),
    }
    for name in ("jaccard", "jaccard_calibrated"):
        values = np.array([np.nan if j is None else j for j in measured.get(name, [])], float)
        known = np.isfinite(values)
        if known.any():
            numbers[f"{name}_auroc"] = float(roc_auc_score(label[known], values[known]))
    for name in (*SELECTIONS, "calibrated"):
        for figure in ("auroc", "ap"):
            values = [a for a in measured.get(f"{figure}_{name}", []) if a is not None]
            if values:
                numbers[f"pixel_{figure}_{name}"] = float(np.mean(values))
    return numbers


def controls(samples: list[ProceduralSample], model: Any, processor: Any) -> dict[str, float]:
    """Pixel AUROC of maps that know nothing, or only where defects tend to be, or only contrast."""
    rows, columns = np.indices((IMAGE_SIZE, IMAGE_SIZE)) / IMAGE_SIZE - 0.5
    others = held_out(VALIDATION_SEED, 600)
    oracle = np.mean([sample.mask for sample in others if sample.label], axis=0)
    random, _ = new_model(12345)
    anomalous = [sample for sample in samples if sample.label]
    read = summary(measure(model, processor, samples, attention=random.eval()))

    def mean(score: Any) -> float:
        return float(np.mean([pixel_auroc(score(sample), sample.mask) for sample in anomalous]))

    return {
        "center prior": mean(lambda sample: -np.hypot(rows, columns)),
        "position-only oracle": mean(lambda sample: oracle),
        "saliency": mean(lambda sample: saliency(sample.image)),
        "random weights, all tokens": read["pixel_auroc_all"],
        "random weights, both": read["pixel_auroc_both"],
    }


def best_threshold(measured: dict[str, Any]) -> float:
    """The J that parts anomalous (above) from normal (below) best, by balanced accuracy, on validation images."""
    known = [(label, j) for label, j in zip(measured["label"], measured["jaccard"], strict=True) if j is not None]
    label, jaccard = (np.array(column) for column in zip(*known, strict=True))
    cuts = np.unique(jaccard)
    balanced = [(jaccard[label == 1] > cut).mean() + (jaccard[label == 0] <= cut).mean() for cut in cuts]
    return float(cuts[int(np.argmax(balanced))])


def stored(path: Path, make: Any) -> Any:
    """The JSON at ``path``, made first if it is not there."""
    if not path.exists():
        value = make()
        path.with_suffix(".part").write_text(json.dumps(value))
        path.with_suffix(".part").rename(path)
    return json.loads(path.read_text())


def run(
    name: str,
    seed: int,
    setting: tuple[float, MethodConfig],
    args: argparse.Namespace,
    read_out: MethodConfig | None = None,
) -> dict[str, Any]:
    """Train one variant from the warm start and measure it on the held-out images."""
    w_cons, method = setting
    settings = {key: getattr(args, key) for key in ("steps", "prompts", "n", "lr", "kl")}
    cfg = LoopConfig(method, w_cons, seed=seed, **settings)
    (model, processor), (reference, _) = load(args.model), load(args.model)
    seconds = train(model, reference, TinyRollout(model, processor), cfg, args.out / f"{name}-{seed}.jsonl")
    model.save_pretrained(args.out / f"{name}-{seed}")
    measured = measure(model, processor, held_out(SPLITS[args.split], args.images), read_out=read_out)
    return {
        "settings": dataclasses.asdict(cfg),
        "cpu_seconds": seconds,
        "summary": summary(measured),
        "measured": measured,
    }


def report(results: dict[str, list[dict[str, Any]]], control: dict[str, float]) -> None:
    """Print the tables of all variants; every variant against the warm start, and each CGRO against R1."""
    trained = [name for name in results if name != "warm start"]
    print(f"\n{table(results)}")
    print("\npixel AUROC of controls: " + ", ".join(f"{name} {value:.3f}" for name, value in control.items()))
    pairs = [(name, "warm start") for name in trained]
    if "r1" in trained:
        pairs += [(name, "r1") for name in trained if name != "r1"]
    repeated = results | {"warm start": results["warm start"] * len(results[trained[0]])}
    print(f"\n{comparison(repeated, pairs)}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=tiny_model_dir())
    parser.add_argument("--variants", default="r1,cgro,cgro-calibrated,cgro-gated,cgro-continuous")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--calibration", type=Path, help="folder of `realad calibrate`")
    for name in ("steps", "prompts", "n", "lr", "kl"):
        default = getattr(LoopConfig, name)
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="images to measure; choose settings on validation"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    model, processor = load(args.model)
    images = held_out(SPLITS[args.split], args.images)
    read_out = None if args.calibration is None else calibrated_method(args.calibration)
    start = stored(args.out / "start.json", lambda: measure(model, processor, images, read_out=read_out))
    control = stored(args.out / "controls.json", lambda: controls(images, model, processor))
    validation = stored(args.out / "validation.json", lambda: measure(model, processor, held_out(VALIDATION_SEED, 200)))
    settings = variants(best_threshold(validation), read_out)
    results: dict[str, list[dict[str, Any]]] = {"warm start": [{"summary": summary(start), "measured": start}]}
    names, seeds = args.variants.split(","), [int(seed) for seed in args.seeds.split(",")]
    for seed, name in itertools.product(seeds, names):
        path = args.out / f"{name}-{seed}.json"
        results.setdefault(name, []).append(
            stored(path, lambda name=name, seed=seed: run(name, seed, settings[name], args, read_out))
        )
        print(name, seed, json.dumps(results[name][-1]["summary"]), flush=True)
    print(f"\n{hardware()}, Python {platform.python_version()}, torch {torch.__version__}, 1 thread")
    print(f"threshold from validation images: J = {best_threshold(validation):.3f}")
    report(results, control)
    print(f"\n{by_surface([sample.surface for sample in images], results)}")
    logs = {name: [args.out / f"{name}-{seed}.jsonl" for seed in seeds] for name in names}
    plot(logs, results, args.out / "learning.png")


if __name__ == "__main__":
    main()
