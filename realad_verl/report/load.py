"""Reads run folders: an evaluation (results.jsonl, results.json) or a training run (metrics.jsonl, samples/)."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from realad_verl.errors import UserError
from realad_verl.evaluate.compare import Evaluated
from realad_verl.evaluate.store import read_json, read_rows
from realad_verl.evaluate.summary import read_results

# Settings with such a name are never shown: they may be credentials.
_SECRET = re.compile(r"(?i)(api[_-]?key|secret|passw|credential|auth|(?:^|[._-])key$|(?:^|[._-])token$|_key$)")


@dataclass
class View:
    """One column of the gallery: what one run (or one step of it) said about each image."""

    name: str
    folder: Path
    rows: dict[str, dict[str, Any]]
    images: dict[str, dict[str, Any]] = field(default_factory=dict)  # id -> outline, pixel_auroc


@dataclass
class Run:
    """One run folder. ``results`` is None for a training run, ``steps`` is empty for an evaluation."""

    name: str
    folder: Path
    settings: dict[str, Any]
    results: dict[str, Any] | None
    steps: list[dict[str, Any]]
    views: list[View]

    def evaluated(self) -> Evaluated:
        """This run as `compare` takes it."""
        assert self.results is not None
        return Evaluated(self.name, self.folder, self.results, self.views[0].rows)


def load_run(folder: Path, name: str | None = None) -> Run:
    """Read ``folder``. UserError where it is neither a finished evaluation nor a training run."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a directory. Give the --out folder of `realad evaluate`, or a training run's."
        )
    name = name or folder.resolve().name
    settings_file = folder / "settings.json"
    settings = shown_settings(read_json(settings_file)) if settings_file.is_file() else {}
    if (folder / "results.json").is_file():
        results = read_results(folder)
        images = read_json(folder / "images.json") if (folder / "images.json").is_file() else {}
        rows = {r["id"]: r for r in read_rows(folder) if not r.get("error") and (r["id"] in images or not images)}
        return Run(name, folder, settings, results, [], [View(name, folder, rows, images)])
    if (folder / "metrics.jsonl").is_file():
        return Run(name, folder, settings, None, read_steps(*_metrics_files(folder)), _sample_views(folder, name))
    if list(folder.glob("results*.jsonl")):
        raise UserError(
            f"the evaluation in {folder} is not finished. Run the same `realad evaluate` command again first."
        )
    raise UserError(f"{folder} holds neither results.json (evaluation) nor metrics.jsonl (training).")


def load_runs(folders: list[Path]) -> list[Run]:
    """Read every folder; runs of the same folder name get a longer name so that they can be told apart."""
    names = [f.resolve().name for f in folders]
    longer = [
        "/".join(f.resolve().parts[-2:]) if names.count(n) > 1 else n for f, n in zip(folders, names, strict=True)
    ]
    if len(set(longer)) < len(longer):
        raise UserError("the same run folder is given twice. Give each run once.")
    return [load_run(folder, name) for folder, name in zip(folders, longer, strict=True)]


def _metrics_files(folder: Path) -> list[Path]:
    """metrics.jsonl, then what a resumed run wrote (metrics.after-000010.jsonl), in order."""
    return [folder / "metrics.jsonl", *sorted(folder.glob("metrics.after-*.jsonl"))]


def read_steps(*paths: Path) -> list[dict[str, Any]]:
    """The steps of a run's metrics files, sorted; of a step that was written twice the last one counts."""
    steps: dict[int, dict[str, Any]] = {}
    for path in paths:
        _read_steps_into(steps, path)
    return [steps[key] for key in sorted(steps)]


def _read_steps_into(steps: dict[int, dict[str, Any]], path: Path) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            figures = row.get("data", row)  # verl's file logger keeps the figures below "data"
            steps.setdefault(int(row["step"]), {}).update(figures, step=int(row["step"]))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            if number == len(lines):  # torn last line of a run that is still going, or was killed
                break
            raise UserError(f"{path}, line {number} is not a step (a JSON object with `step`).") from None


def _sample_views(folder: Path, name: str) -> list[View]:
    """Before and after: the first, the best and the last validation, which are of the same images; else steps."""
    validated = _logged(folder, "validation")
    if len(validated) > 1:
        best = folder / "best_step.txt"
        wanted = {validated[0][0], validated[-1][0], int(best.read_text()) if best.is_file() else -1}
        chosen = [(f"{name}, validation at step {step}", path) for step, _, path in validated if step in wanted]
    else:
        steps = _logged(folder, "step")
        steps = steps if len(steps) < 2 else [steps[0], steps[-1]]
        chosen = [(f"{name}, step {step}", path) for step, _, path in steps]
    views = []
    for title, path in chosen:
        rows: dict[str, dict[str, Any]] = {}
        for file in sorted(path.glob("*.json")):
            row = _sample_row(read_json(file), file)
            rows.setdefault(row["id"], row)  # of several responses to one image the first
        views.append(View(title, path, rows))
    return views


def _logged(folder: Path, kind: str) -> list[tuple[int, int, Path]]:
    """Folders of samples in order: step_000010, or step_000010.1 for the second of several mini-batches."""
    found = ((re.fullmatch(kind + r"_(\d+)(?:\.(\d+))?", path.name), path) for path in (folder / "samples").glob("*"))
    return sorted((int(name[1]), int(name[2] or 0), path) for name, path in found if name)


def _sample_row(row: dict[str, Any], file: Path) -> dict[str, Any]:
    """A training sample with the fields that a row of results.jsonl has and its writer leaves out."""
    names = ("text", "s_t", "s_i", "weight", "kept")
    tokens = [[t[n] for n in names] if isinstance(t, dict) else t for t in row.get("tokens") or []]
    missing = [key for key in ("gt_label", "response", "answer") if key not in row]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)}: it is not a sample that training wrote.")
    return {"pred_score": None, **row, "id": str(row.get("id") or file.stem), "tokens": tokens}


def shown_settings(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings flattened to dotted names, without anything whose name suggests a credential."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if _SECRET.search(str(key)):
            continue
        if isinstance(value, dict):
            flat |= shown_settings(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
