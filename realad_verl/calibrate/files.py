"""What ``realad calibrate`` writes: baselines, the recipe fragment, every figure as JSON, the picture."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from realad_verl.calibrate.figures import Figures
from realad_verl.calibrate.images import ImageReader, class_counts
from realad_verl.calibrate.picture import Shown, draw
from realad_verl.calibrate.run import Calibration
from realad_verl.calibration import FRAGMENT, write_baselines

SHOWN = 6  # anomalous images in the picture, the first of the seed's order


def write(calibration: Calibration, out: Path, recipe: str, command: str, model_config: Any) -> dict[str, Any]:
    """Write the files of a calibration into ``out``; returns the content of calibration.json."""
    write_baselines(out, calibration.baseline, calibration.method, model_config)
    (out / FRAGMENT).write_text(fragment(calibration, recipe, command), encoding="utf-8")
    content = summary(calibration)
    (out / "calibration.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    default, method = calibration.default, calibration.method.consistency
    given = dataclasses.asdict(calibration.default_method.consistency)
    readouts = [
        ("default read-out", *default, (given["delta_1"], given["delta_2"])),
        ("calibrated", *calibration.calibrated, (method.delta_1, method.delta_2)),
    ]
    draw(out / "calibration.png", readouts, calibration.choice, _shown(calibration))
    return content


def fragment(calibration: Calibration, recipe: str, command: str) -> str:
    """The recipe fragment: ``recipe`` with the calibrated read-out and thresholds."""
    method = calibration.method
    consistency = {k: getattr(method.consistency, k) for k in ("t", "percentile", "delta_1", "delta_2")}
    scoring = {k: getattr(method.scoring, k) for k in ("select", "tau_i", "concentration", "baseline")}
    readout = {"layers": None, "heads": [list(head) for head in method.readout.heads or ()]}
    settings = {"readout": readout, "scoring": scoring, "map": {"smooth": method.map.smooth}}
    settings |= {"consistency": consistency, "calibration": "."}
    body = yaml.safe_dump({"realad": {"method": settings}}, sort_keys=False, default_flow_style=None)
    return (
        f"# @package _global_\n# {recipe} with the read-out of `{command}`.\n"
        "# `calibration: .` is the folder of this file.\n"
        f"defaults:\n  - /{recipe}\n  - _self_\n\n{body}"
    )


def summary(calibration: Calibration) -> dict[str, Any]:
    """Every figure as plain JSON values."""
    choice = calibration.choice
    at = {tuple(head): float(auroc) for head, auroc in zip(calibration.all_heads, choice.auroc_H, strict=True)}
    return {
        "images": class_counts([one.image for one in calibration.sampled]),
        "responses_an_image": len(calibration.sampled[0].ids),
        "default": calibration.default[1].to_dict(),
        "calibrated": calibration.calibrated[1].to_dict(),
        "heads": [{"layer": head[0], "head": head[1], "auroc": round(at[head], 4)} for head in calibration.heads],
        "number_of_heads": len(choice.auroc_H),
        "auroc_by_number_of_heads": {str(size): round(value, 4) for size, value in choice.size_auroc.items()},
        "halves": {"overlap_of_choice": choice.half_overlap, "rank_correlation": choice.half_rank},
        "grid": list(calibration.baseline.grid),
        "words_with_a_baseline": len(calibration.baseline.ids_V),
        "seconds": {name: round(value, 2) for name, value in calibration.seconds.items()},
        "doubts": doubts(calibration.calibrated[1], choice.half_overlap),
        "method": calibration.method.to_dict(),
    }


def doubts(calibrated: Figures, half_overlap: float) -> list[str]:
    """Why this calibration may be worth nothing on other images; empty where its own images give no reason."""
    found = []
    if not calibrated.auroc_low > 0.5:  # or there is no J at all
        found.append(
            "even on the images that it was chosen on, J does not tell the classes apart "
            f"(AUROC {calibrated.auroc:.3f}, 95 % from {calibrated.auroc_low:.3f}): heads and thresholds were fitted "
            "to noise, and maps may get worse. Read without it, or teach the model these images first."
        )
    if half_overlap < 0.5:
        found.append(
            f"two halves of the images share {half_overlap:.0%} of their choice of heads: more images may settle it."
        )
    return found


def rows(calibration: Calibration) -> list[tuple[str, str, str]]:
    """(figure, default read-out, calibrated read-out) for the terminal."""
    pair = (calibration.default[1], calibration.calibrated[1])

    def line(name: str, text: Any) -> tuple[str, str, str]:
        return name, text(pair[0]), text(pair[1])

    return [
        line("J, normal / anomalous", lambda f: f"{f.jaccard_normal:.3f} / {f.jaccard_anomalous:.3f}"),
        line("AUROC of J, 95 %", lambda f: f"{f.auroc:.3f} [{f.auroc_low:.3f}, {f.auroc_high:.3f}]"),
        line("r of J with a right answer, within an image", lambda f: _within(f.within_r, f.within_error)),
        line("images whose responses the reward divides", lambda f: f"{f.divided_given:.0%}"),
        line("... at the best thresholds", lambda f: f"{f.divided_best:.0%} (J = {f.threshold:.3f})"),
        line("reward, normal / anomalous", lambda f: f"{f.reward_normal:.2f} / {f.reward_anomalous:.2f}"),
        line("fallback / no J", lambda f: f"{f.fallback:.1%} / {f.no_evidence:.1%}"),
    ]


def _within(r: float, error: float) -> str:
    return "-" if np.isnan(r) else f"{r:+.2f} +- {1.96 * error:.2f}"


def _shown(calibration: Calibration) -> Sequence[Shown]:
    decode, found = ImageReader(), []
    for i, one in enumerate(calibration.sampled):
        if one.image.label and one.map_P is not None and i in calibration.maps and len(found) < SHOWN:
            pictures = (one.map_P.reshape(one.grid).numpy(), calibration.maps[i].reshape(one.grid).numpy())
            found.append(Shown(decode(one.image), *pictures))
    return found
