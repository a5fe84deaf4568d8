"""The masks of an evaluation: one rule for the set, checked against their images, and an account of what was found."""

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from realad_verl.data.datasets import Sample, get_dataset, load_fitted_mask
from realad_verl.data.masks import FITS, MaskSetting, Misfit, mask_files, rule_of

MOSTLY = 0.5  # a mask that marks more of its image than this is perhaps drawn the other way round


class GroundTruth:
    """Masks of ``samples`` by one rule; what was found on the way is counted. ``mask`` may be called by threads."""

    def __init__(self, samples: Sequence[Sample], setting: MaskSetting = MaskSetting(), workers: int = 2) -> None:
        """Reads every mask image of ``samples`` once, to find which levels the set has."""
        paths = [
            file
            for sample in samples
            if sample.label and sample.mask_path is not None and get_dataset(sample.dataset).read_mask is None
            for file in mask_files(sample.mask_path)
        ]
        self.setting = setting
        self.rule = rule_of(paths, setting, workers)
        self.misfits: list[dict[str, str]] = []
        self._fits: Counter = Counter()
        self._examples: dict[str, str] = {}
        self._mostly: list[str] = []
        self._lock = threading.Lock()

    def mask(self, sample: Sample) -> np.ndarray | None:
        """Bool [H, W] of an anomalous ``sample``; None where it has none, or one of another shape than its image."""
        if sample.mask_path is None:
            return None
        try:
            mask, fit = load_fitted_mask(sample, self.rule)
        except Misfit as error:
            with self._lock:
                self.misfits.append({"id": sample.id, "reason": error.reason})
            return None
        mostly = mask.mean() > MOSTLY
        with self._lock:
            if fit:
                self._fits[fit] += 1
                self._examples[fit] = min(sample.id, self._examples.get(fit, sample.id))
            self._mostly += [sample.id] * bool(mostly)
        return mask

    def to_dict(self) -> dict[str, Any]:
        """Rule, fits and misfits as JSON holds them; after the last mask was read."""
        order = sorted(self._fits)
        fits = [{"what": FITS[fit], "count": self._fits[fit], "example": self._examples[fit]} for fit in order]
        found: dict[str, Any] = {"setting": self.setting.text, "rule": self.rule.lines(), "fits": fits}
        found["misfits"] = sorted(self.misfits, key=lambda entry: entry["id"])
        return found | {"mostly_defect": sorted(self._mostly)}


def ground_truth_lines(found: dict[str, Any]) -> list[str]:
    """``GroundTruth.to_dict`` in words, a line each."""
    lines = list(found["rule"])
    lines += [f"{fit['count']} {fit['what']}, as {fit['example']}" for fit in found["fits"]]
    lines += first_of("not in the pixel figures", found["misfits"], "reason")
    if found["mostly_defect"]:
        names = found["mostly_defect"]
        lines.append(
            f"{len(names)} masks mark more than half of their image, as {names[0]}. Where the background is what is "
            "marked: --mask-levels inverted"
        )
    return lines


def first_of(what: str, entries: list[dict[str, str]], why: str, most: int = 5) -> list[str]:
    """A line for each of the first ``most`` entries, its ``why`` behind its id; how many more there are."""
    lines = [f"{what}: {entry['id']} ({entry[why]})" for entry in entries[:most]]
    return lines + ([f"{what}: {len(entries) - most} more, in results.json"] if len(entries) > most else [])
