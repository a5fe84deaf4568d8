"""Which consistency settings tell the classes apart, and where would their reward push? No training: one read-out.

    python benchmarks/learning_whatif.py --out out/learning

Samples 8 responses to each of 200 validation images of the shifted domain, as a training step does, reads every layer
once, and reduces the rows under each setting. Letters: B images, n responses an image. See docs/learning.md.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning import BATCH, VALIDATION_SEED, held_out, load
from learning_loop import Evidences, pad
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from realad_verl.evidence import EvidenceBuilder
from realad_verl.method.anomaly_map import resize_map
from realad_verl.method.config import ConsistencyConfig, MethodConfig, ReadoutConfig, ScoringConfig
from realad_verl.tiny import tiny_model_dir
from realad_verl.tiny.build import hardware
from realad_verl.tiny.report import answer_label, pixel_auroc
from realad_verl.tiny.rollout import TinyRollout

Floats = NDArray[np.float64]
HARD = ConsistencyConfig()
DEFAULT = {"layers": "all", "query": "at", "select": "both", "t": 5, "percentile": 95.0, "jaccard": "pairwise"}
CHOICES: dict[str, tuple[Any, ...]] = {
    "t": (2, 3, 5, 8),
    "percentile": (50.0, 70.0, 85.0, 90.0, 95.0, 98.0),
    "jaccard": ("pairwise", "joint"),
    "select": ("both", "text", "image", "all"),
    "layers": ("all", 0, 1, 2),
    "query": ("at", "before"),
}


def one_at_a_time() -> list[dict[str, Any]]:
    """The default, then each setting changed alone."""
    return [DEFAULT] + [
        DEFAULT | {name: value} for name, values in CHOICES.items() for value in values if value != DEFAULT[name]
    ]


def method(setting: dict[str, Any]) -> MethodConfig:
    """``layers`` is left out: the rows that are reduced already come from them."""
    consistency = ConsistencyConfig(t=setting["t"], percentile=setting["percentile"], jaccard=setting["jaccard"])
    return MethodConfig(consistency=consistency, scoring=ScoringConfig(select=setting["select"]))


class Readings:
    """Responses to ``samples`` and their attention rows, by layer and query; reduced under any setting afterwards."""

    def __init__(self, model: Any, processor: Any, samples: list[Any], n: int):
        self.rollout, self.samples, self.n = TinyRollout(model, processor), samples, n
        self.layers = range(model.config.text_config.num_hidden_layers)
        self.responses: list[list[int]] = []
        self.plans: dict[str, list[Any]] = {query: [] for query in CHOICES["query"]}
        self.rows: dict[tuple[str, int], list[torch.Tensor]] = {key: [] for key in self._keys()}
        for start in range(0, len(samples), BATCH):
            self._read(samples[start : start + BATCH], start)

    def _keys(self) -> list[tuple[str, int]]:
        return [(query, layer) for query in CHOICES["query"] for layer in self.layers]

    def _read(self, samples: list[Any], seed: int) -> None:
        images = torch.stack([torch.from_numpy(sample.image) for sample in samples])
        responses = self.rollout.sample(images, n=self.n, seed=seed)
        for query, layer in self._keys():
            evidences = Evidences(self.rollout, MethodConfig(readout=ReadoutConfig(layers=(layer,), query=query)))
            with torch.no_grad():
                _, plans, rows = evidences.read(images, responses, pad(responses, self.n))
            self.rows[query, layer] += rows
            if layer == 0:
                self.plans[query] += plans
        self.responses += responses

    def reduce(self, setting: dict[str, Any]) -> list[Any]:
        query, layers = setting["query"], self.layers if setting["layers"] == "all" else [setting["layers"]]
        rows = [torch.stack(of).mean(0) for of in zip(*(self.rows[query, layer] for layer in layers), strict=True)]
        builder = EvidenceBuilder(self.rollout.model.config, self.rollout.tokenizer, method(setting))
        return builder.reduce(self.plans[query], rows)

    def jaccard(self, setting: dict[str, Any]) -> Floats:
        """[B, n], NaN where a response has none."""
        values = [np.nan if found.jaccard is None else found.jaccard for found in self.reduce(setting)]
        return np.array(values).reshape(-1, self.n)

    def labels(self) -> Floats:
        return np.array([sample.label for sample in self.samples], dtype=float)

    def answers(self) -> Floats:
        """[B, n]: 1 yes, 0 no, -1 none."""
        texts = [answer_label(self.rollout.text(ids)) for ids in self.responses]
        return np.array(texts, dtype=float).reshape(-1, self.n)

    def map_quality(self) -> Floats:
        """Pixel AUROC of each response's all-token map, [B, n]; NaN on normal images."""
        found, out = iter(self.reduce(DEFAULT | {"select": "all"})), np.full((len(self.samples), self.n), np.nan)
        for b, sample in enumerate(self.samples):
            for i in range(self.n):
                evidence = next(found)
                if sample.label and evidence.anomaly_map_P is not None:
                    resized = resize_map(evidence.anomaly_map_P, evidence.grid, sample.mask.shape).numpy()
                    out[b, i] = pixel_auroc(resized, sample.mask)
        return out


def within_group(first: Floats, second: Floats) -> float:
    """Mean over images of the correlation of two scores [B, n] over an image's responses, where both of them vary."""
    found = []
    for x, y in zip(first, second, strict=True):
        known = np.isfinite(x) & np.isfinite(y)
        if known.sum() > 2 and np.ptp(x[known]) > 0 and np.ptp(y[known]) > 0:
            found.append(np.corrcoef(x[known], y[known])[0, 1])
    return float(np.mean(found)) if found else float("nan")


def separation(jaccard: Floats, label: Floats) -> float:
    """AUROC of J for "anomalous" over responses; NaN without both classes."""
    known = np.isfinite(jaccard)
    both = len(set(label[known])) == 2
    return float(roc_auc_score(label[known], jaccard[known])) if both else float("nan")


def describe(jaccard: Floats, labels: Floats, answers: Floats, quality: Floats) -> dict[str, float]:
    """What J [B, n] says about the label, alone and among equal answers, and where a reward from it pushes."""
    label = np.broadcast_to(labels[:, None], jaccard.shape)
    reward = np.where(label == 1, jaccard, 1 - jaccard)
    return {
        "normal": float(np.nanmean(jaccard[label == 0])),
        "anomalous": float(np.nanmean(jaccard[label == 1])),
        "auroc": separation(jaccard, label),
        "auroc, answer no": separation(jaccard[answers == 0], label[answers == 0]),
        "auroc, answer yes": separation(jaccard[answers == 1], label[answers == 1]),
        "with accuracy": within_group(reward, (answers == label).astype(float)),
        "with map": within_group(reward, quality),
        "hard varies": varies(jaccard, label, (HARD.delta_1, HARD.delta_2)),
        "calibrated varies": varies(jaccard, label, (best_cut(jaccard, label),) * 2),
    }


def best_cut(jaccard: Floats, label: Floats) -> float:
    """The J that parts the classes best, by balanced accuracy, among 100 quantiles."""
    cuts = np.nanquantile(jaccard, np.linspace(0, 1, 101))
    found = [(jaccard[label == 1] > cut).mean() + (jaccard[label == 0] < cut).mean() for cut in cuts]
    return float(cuts[int(np.argmax(found))])


def varies(jaccard: Floats, label: Floats, deltas: tuple[float, float]) -> float:
    """Share of images whose responses do not all earn the same hard reward: only there it makes an advantage."""
    hard = np.where(label == 1, jaccard > deltas[0], jaccard < deltas[1])
    return float((hard.any(1) & ~hard.all(1)).mean())


def markdown(rows: list[tuple[dict[str, Any], dict[str, float]]]) -> str:
    keys = list(rows[0][1])
    lines = ["| changed | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for setting, numbers in rows:
        changed = ", ".join(f"{name} {value}" for name, value in setting.items() if value != DEFAULT[name])
        lines.append(f"| {changed or 'default'} | " + " | ".join(f"{numbers[key]:.3f}" for key in keys) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=tiny_model_dir())
    parser.add_argument("--images", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    readings = Readings(*load(args.model), held_out(VALIDATION_SEED, args.images), n=8)
    labels, answers, quality = readings.labels(), readings.answers(), readings.map_quality()
    rows = [(cfg, describe(readings.jaccard(cfg), labels, answers, quality)) for cfg in one_at_a_time()]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "whatif.json").write_text(json.dumps(rows))
    print(f"{hardware()}, {time.process_time() - started:.0f} CPU s; {args.images} validation images x 8 responses\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
