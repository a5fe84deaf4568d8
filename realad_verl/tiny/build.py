"""How the tiny backbone is built: the build and its card."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from realad_verl.errors import UserError
from realad_verl.tiny.config import TrainConfig


def build(
    out: Path,
    cfg: TrainConfig,
    *,
    report_images: int = 256,
    overwrite: bool = False,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> dict[str, Any]:
    """Warm-start a tiny model, measure it and write it, with its card, to ``out``.

    Args:
        report_images: held-out images a domain.
        on_step: gets the step, over all stages, and the losses by name.

    Returns:
        The report: settings, seconds of training, and a `DomainReport` of each domain as a dict.

    Raises:
        UserError: ``out`` holds files and ``overwrite`` is off.
    """
    import torch

    from realad_verl.tiny.arch import new_model, save
    from realad_verl.tiny.report import domain_report
    from realad_verl.tiny.train import warm_start

    if out.exists() and any(out.iterdir()) and not overwrite:
        raise UserError(f"{out} is not empty. Name a new folder, or pass --overwrite.")
    model, processor = new_model(cfg.seed)
    seconds = warm_start(model, processor, cfg, on_step)
    out.mkdir(parents=True, exist_ok=True)
    save(model, processor, out)
    report = {
        "settings": asdict(cfg),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(processor.tokenizer),
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        **{d: asdict(domain_report(model, processor, d, report_images)) for d in ("source", "shifted")},
    }
    (out / "README.md").write_text(model_card(report))
    return report


CARD_ROWS = (
    ("accuracy, greedy", "accuracy"),
    ("well-formed, greedy", "format"),
    ("defect type named (anomalous images)", "named_type"),
    ("place named (anomalous images)", "named_place"),
    ("accuracy, 8 samples at temperature 1", "sampled_accuracy"),
    ("well-formed, 8 samples", "sampled_format"),
    ("groups of 8 with both answers", "mixed_groups"),
    ("distinct texts in a group of 8", "distinct"),
    ("J, anomalous images", "jaccard_anomalous"),
    ("J, normal images", "jaccard_normal"),
    ("pixel AUROC of a centre prior", "center_auroc"),
    ("pixel AUROC of abs(image - blur)", "saliency_auroc"),
)


def hardware() -> str:
    """The kind of machine, for reports: cores and architecture, no names."""
    import os
    import platform

    return f"a machine with {os.cpu_count()} {platform.machine()} CPU cores"


def model_card(report: dict[str, Any]) -> str:
    """The README.md of a built model."""
    import jinja2

    from realad_verl.data.procedural.captions import PLACE_QUESTION

    template = (Path(__file__).parent / "card.md.j2").read_text()
    return jinja2.Template(template, undefined=jinja2.StrictUndefined, keep_trailing_newline=True).render(
        rows=CARD_ROWS, place_question=PLACE_QUESTION, **report
    )
