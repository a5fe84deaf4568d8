"""What a tiny model can do: decisions, format, captions, and where its attention looks, on images it was not taught."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from realad_verl.data.procedural import ProceduralDefects, ProceduralSample
from realad_verl.evidence import EvidenceBuilder
from realad_verl.method.anomaly_map import resize_map
from realad_verl.method.config import MethodConfig, ScoringConfig
from realad_verl.method.evidence import Evidence
from realad_verl.method.spans import parse_response
from realad_verl.tiny.arch import IMAGE_SIZE
from realad_verl.tiny.rollout import TinyRollout

SELECTIONS = ("all", "text", "image", "both")
HELD_OUT_SEED = 777  # images that no warm start with another seed has seen
BATCH = 32


@dataclass(frozen=True)
class DomainReport:
    """Measured on one domain. AUROCs are pixel AUROC an image, averaged over the anomalous ones.

    Attributes:
        accuracy, format: share of right and of well-formed greedy responses.
        named_type, named_place: share of anomalous images whose defect type or place the response names.
        map_auroc: of the ReAL map by selection; ``center_auroc`` and ``saliency_auroc`` (|image - blur|): controls.
        jaccard_anomalous, jaccard_normal: mean J of the reasoning tokens' regions by label.
        sampled_accuracy, sampled_format: of 8 samples an image at temperature 1.
        mixed_groups: share of those groups of 8 that hold both answers; ``distinct``: mean number of distinct texts.
    """

    images: int
    accuracy: float
    format: float
    named_type: float
    named_place: float
    map_auroc: dict[str, float]
    center_auroc: float
    saliency_auroc: float
    jaccard_anomalous: float
    jaccard_normal: float
    sampled_accuracy: float
    sampled_format: float
    mixed_groups: float
    distinct: float


def domain_report(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, domain: str, images: int = 256
) -> DomainReport:
    """Measure the model on ``images`` held-out images of a domain."""
    rollout, spans = TinyRollout(model, processor), MethodConfig().spans
    source = ProceduralDefects(IMAGE_SIZE, domain, HELD_OUT_SEED)
    samples = [source[i] for i in range(images)]
    labels = np.array([sample.label for sample in samples])
    greedy, drawn, evidence = [], [], {select: [] for select in SELECTIONS}
    for start in range(0, images, BATCH):
        pixels = torch.stack([torch.from_numpy(s.image) for s in samples[start : start + BATCH]])
        responses = rollout.sample(pixels, temperature=0)
        greedy += [rollout.text(ids) for ids in responses]
        for select, found in map_evidence(rollout, pixels, responses).items():
            evidence[select] += found
        if start < 2 * BATCH:
            drawn += [rollout.text(ids) for ids in rollout.sample(pixels, n=8, seed=start)]
    answers = np.array([answer_label(text) for text in greedy])
    groups = np.array([answer_label(text) for text in drawn]).reshape(-1, 8)
    texts = np.array(drawn).reshape(-1, 8)
    anomalous = [(sample, text) for sample, text in zip(samples, greedy, strict=True) if sample.label]
    jaccard = np.array([np.nan if e.jaccard is None else e.jaccard for e in evidence["both"]])
    return DomainReport(
        images=images,
        accuracy=float((answers == labels).mean()),
        format=float(np.mean([parse_response(text, spans).well_formed for text in greedy])),
        named_type=float(np.mean([f"{sample.defect_type}" in text for sample, text in anomalous])),
        named_place=float(np.mean([_names_place(text, sample) for sample, text in anomalous])),
        map_auroc={select: mean_auroc(samples, found) for select, found in evidence.items()},
        center_auroc=_control_auroc(samples, _center),
        saliency_auroc=_control_auroc(samples, saliency),
        jaccard_anomalous=_mean_known(jaccard[labels == 1]),
        jaccard_normal=_mean_known(jaccard[labels == 0]),
        sampled_accuracy=float((groups == labels[: len(groups), None]).mean()),
        sampled_format=float(np.mean([parse_response(text, spans).well_formed for text in drawn])),
        mixed_groups=float(np.mean([{0, 1} <= set(group) for group in groups])),
        distinct=float(np.mean([len(set(row)) for row in texts])),
    )


def _mean_known(values: np.ndarray) -> float:
    """The mean of what is not NaN; NaN where nothing is known."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def answer_label(text: str) -> int:
    """1 for yes, 0 for no, -1 where no answer can be read."""
    answer = parse_response(text, MethodConfig().spans).answer
    return -1 if answer is None else int(answer == "yes")


def map_evidence(rollout: TinyRollout, pixels: torch.Tensor, responses: list[list[int]]) -> dict[str, list[Evidence]]:
    """Evidence of each response under every token selection, from one forward."""
    plans, rows, _, _ = rollout.read(pixels, responses, MethodConfig())
    configs = {select: MethodConfig(scoring=ScoringConfig(select=select)) for select in SELECTIONS}
    return {
        select: EvidenceBuilder(rollout.model.config, rollout.tokenizer, cfg).reduce(plans, rows)
        for select, cfg in configs.items()
    }


def mean_auroc(samples: list[ProceduralSample], evidence: list[Evidence]) -> float:
    """Mean pixel AUROC over anomalous images; an image without a map counts as chance, 0.5."""
    scores = []
    for sample, found in zip(samples, evidence, strict=True):
        if not sample.label:
            continue
        if found.anomaly_map_P is None:
            scores.append(0.5)
            continue
        anomaly_map = resize_map(found.anomaly_map_P, found.grid, sample.mask.shape).numpy()
        scores.append(pixel_auroc(anomaly_map, sample.mask))
    return float(np.mean(scores))


def pixel_auroc(scores: np.ndarray, mask: np.ndarray) -> float:
    """Area under the ROC curve of one image, scores and bool mask [H, W]: the mean rank of the defect's pixels."""
    _, inverse, counts = np.unique(scores.ravel(), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share their mean rank
    positives = int(mask.sum())
    above = ranks[mask.ravel()].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (mask.size - positives)))


def saliency(image: np.ndarray) -> np.ndarray:
    """|image - blur|, averaged over the channels, float32 [H, W]: what needs no learning."""
    image = image.astype(np.float32)
    return np.abs(image - cv2.GaussianBlur(image, (0, 0), image.shape[0] / 20)).mean(2)


def _center(image: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(image.shape[:2]) / image.shape[0] - 0.5
    return -np.hypot(rows, columns).astype(np.float32)


def _control_auroc(samples: list[ProceduralSample], scorer) -> float:
    return float(np.mean([pixel_auroc(scorer(s.image), s.mask) for s in samples if s.label]))


def _names_place(text: str, sample: ProceduralSample) -> bool:
    """Whether the words after "at the" begin with the place and not with a longer one ("top" is not "top left")."""
    after = text.lower().partition("at the ")[2].replace(".", " ").split()
    words = str(sample.place).split()
    corner = len(after) > 1 and after[0] in ("top", "bottom") and after[1] in ("left", "right")
    return after[: 2 if corner else 1] == words
