"""The model card of an exported model: what was trained, on what, with which settings."""

import json
from pathlib import Path
from typing import Any

import yaml

from realad_verl.calibration import IN_MODEL, find_calibration
from realad_verl.report.page import versions
from realad_verl.verl_ext.job.checkpoint import Checkpoint
from realad_verl.verl_ext.job.state import Adapter

MANIFEST = "manifest.json"


def write_card(out: Path, checkpoint: Checkpoint, adapter: Adapter | None, library: str = "transformers") -> None:
    """``out``/README.md."""
    base = checkpoint.base_path or "not known: the run folder has no config.yaml"
    header = {"base_model": base, "library_name": library, "pipeline_tag": "image-text-to-text"}
    rows = {
        "base model": base,
        "run": checkpoint.setting("trainer.experiment_name", checkpoint.run.name),
        "step": checkpoint.step,
        "trained": _trained(checkpoint, adapter),
        "rewards": ", ".join(f"{w} {checkpoint.setting(f'realad.{w}')}" for w in ("w_fmt", "w_acc", "w_cons")),
        "learning rate": checkpoint.setting("actor_rollout_ref.actor.optim.lr"),
        "batch": f"{checkpoint.setting('data.train_batch_size')} images x "
        f"{checkpoint.setting('actor_rollout_ref.rollout.n')} responses",
    }
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {rows['run']}, step {checkpoint.step}",
        "Image in; reasoning, answer (yes: anomalous) and, through `realad localize`, an anomaly map out. Trained by "
        "[realad_verl](https://arxiv.org/abs/2603.27179) on image-level labels.",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]),
        "## Data\n\n" + "\n".join(_data(checkpoint)),
        _section("Settings of the method", checkpoint.setting("realad.method")),
        "## Calibration\n\n" + _calibration(out, checkpoint),
        _section("Versions of the export", versions()),
    ]
    (out / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _trained(checkpoint: Checkpoint, adapter: Adapter | None) -> str:
    if adapter is None:
        return "all weights"
    excluded = checkpoint.setting("actor_rollout_ref.model.exclude_modules", "nothing")
    return (
        f"LoRA of rank {adapter.rank}, alpha {adapter.alpha}, on {len(adapter.modules)} layers; excluded: `{excluded}`"
    )


def _calibration(out: Path, checkpoint: Checkpoint) -> str:
    folder = checkpoint.setting("realad.method.calibration")
    if folder is None:
        return "None."
    if find_calibration(out) is None:
        return f"The run used `{folder}`, which was not there when this model was exported."
    return f"`{IN_MODEL}/`, which the run used."


def _data(checkpoint: Checkpoint) -> list[str]:
    files = checkpoint.setting("data.train_files", [])
    return [_described(Path(file)) for file in ([files] if isinstance(files, str) else files)] or ["not known"]


def _described(file: Path) -> str:
    """A training file by what the manifest of ``realad prepare`` beside it says."""
    manifest = file.parent / MANIFEST
    if not manifest.is_file():
        return f"- `{file.name}`, no manifest beside it"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    of_file = content.get("files", {}).get(file.name, {})
    facts = {"data set": content.get("dataset"), "images": of_file.get("rows"), "sha256": of_file.get("sha256")}
    facts |= {key: content.get("settings", {}).get(key) for key in ("split", "size", "seed")}
    return f"- `{file.name}`: " + ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def _section(title: str, value: Any) -> str:
    return f"## {title}\n\n```yaml\n{yaml.safe_dump(value, sort_keys=False).strip()}\n```"
