"""The page as text: what is in it, and what must never be."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import HOSTILE
from fabricated_runs import fabricate_evaluation
from PIL import Image

from realad_verl.commands.demo import changes
from realad_verl.errors import UserError
from realad_verl.evaluate.compare import compare
from realad_verl.evaluate.store import read_json, write_json
from realad_verl.report.gallery import badness, gallery, small_map
from realad_verl.report.load import load_run, load_runs, read_steps, shown_settings
from realad_verl.report.overlay import overlay
from realad_verl.report.page import about, build_report, script_json, short_path
from realad_verl.report.tables import HEADLINE, category_rows, comparison_headline, notes


class Page(HTMLParser):
    """Collects elements, their attributes, and the text of scripts."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: dict[str, str] = {}
        self.shown = ""
        self._script: str | None = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._script = (dict(attrs).get("id") or "main") if tag == "script" else "style" if tag == "style" else None

    def handle_endtag(self, tag):
        self._script = None if tag in ("script", "style") else self._script

    def handle_data(self, data):
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            self.shown += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def page_of(folders, tmp_path, **options) -> Page:
    build_report(folders, tmp_path / "r.html", **options)
    return Page((tmp_path / "r.html").read_text(encoding="utf-8"))


def test_nothing_leads_out_of_the_page(runs, tmp_path):
    page = page_of(list(runs.values()), tmp_path)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    assert "http" not in page.scripts["style"] and "@import" not in page.scripts["style"]
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_model_text_never_becomes_markup(runs, tmp_path):
    page = page_of([runs["cgro"]], tmp_path)
    assert page.count("script") == 6  # data, thumbnails, results, and three of the page's own
    assert not [a for t, a in page.tags if t == "img"]  # images are made by the script
    responses = [c["response"] for i in json.loads(page.scripts["data"])["items"] for c in i["cells"]]
    assert HOSTILE in responses
    for text in ("</script>", "<!--", "a & b", "\u2028"):
        assert not set("<>&\u2028") & set(script_json({"x": text})) and json.loads(script_json({"x": text})) == {
            "x": text
        }


def test_hostile_names_are_escaped_in_tables(runs, tmp_path):
    copy = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(runs["cgro"], copy)
    results = json.loads((copy / "results.json").read_text())
    results["categories"]["<script>alert(3)</script>"] = results["categories"].pop("bolt")
    write_json(copy / "results.json", results)
    page = page_of([copy, runs["r1"]], tmp_path)
    assert page.count("script") == 6 and page.count("img") == 0
    assert "<script>alert(3)</script>" in page.shown and copy.name in page.shown


def test_figures_are_in_both_themes_and_ids_are_unique(runs, tmp_path):
    page = page_of([runs["cgro"], runs["train"]], tmp_path)
    figures = [a for t, a in page.tags if t == "svg"]
    labels = {a["aria-label"] for a in figures}
    assert {"Image ROC", "Pixel precision-recall", "Per-region overlap", "Reward: consistency"} <= labels
    assert {"Evidence: Jaccard J of regions", "Time, seconds a step", "Score by true class"} <= labels
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    styles = " ".join(a.get("style") or "" for t, a in page.tags if t in ("path", "text", "use", "g", "line"))
    assert "var(--series-1)" in styles and not re.search(r"#0\d0\d0\d|#ffffff", styles)
    used = set(re.findall(r"var\((--[\w-]+)\)", styles))
    assert used <= set(re.findall(r"(--[\w-]+):", page.scripts["style"]))


def test_one_run_has_tiles_and_several_have_deltas(runs, tmp_path):
    one = page_of([runs["cgro"]], tmp_path)
    assert "Is there a defect?" in one.shown and "Runs side by side" not in one.shown
    two = page_of([runs["r1"], runs["cgro"]], tmp_path)
    assert "Runs side by side" in two.shown and "baseline" in two.shown and "the same in each" in two.shown


def comparison(folders) -> tuple[list, dict[str, list[dict]]]:
    both = load_runs(folders)
    compared = compare([run.evaluated() for run in both])
    entries = comparison_headline(both, compared, "kept")
    return compared, {entry["label"]: entry["cells"] for entry in entries}


def test_only_what_is_sure_is_bold_or_coloured(runs):
    """Each verdict against the interval of the paired difference, and the sign against what is better."""
    compared, entries = comparison([runs["r1"], runs["cgro"]])
    found = compared.differences[1]["kept"]["macro mean"]
    seen = set()
    for figure in HEADLINE:
        if figure.label not in entries:
            continue
        first, second = entries[figure.label]
        interval = found.get(figure.key)
        sure = interval is not None and (interval[0] > 0 or interval[1] < 0)
        assert (second["verdict"] in ("up", "down")) == sure, figure.label
        assert second["best"] == (second["verdict"] == "up") and first["best"] == (second["verdict"] == "down")
        if sure:
            assert (second["verdict"] == "up") == ((interval[0] > 0) == (figure.better == "+"))
            assert second["interval"].startswith("[")
        seen.add(second["verdict"])
    assert "noise" in seen and seen & {"up", "down"}, "the made-up runs show both kinds"


def test_runs_on_other_images_say_so(runs, tmp_path):
    fewer = tmp_path / "fewer"
    shutil.copytree(runs["cgro"], fewer)
    lines = (fewer / "results.jsonl").read_text().split("\n")
    (fewer / "results.jsonl").write_text("\n".join(lines[4:]))
    images = json.loads((fewer / "images.json").read_text())
    dropped = {json.loads(line)["id"] for line in lines[:4]}
    (fewer / "images.json").write_text(json.dumps({k: v for k, v in images.items() if k not in dropped}))
    page = page_of([runs["r1"], fewer], tmp_path)
    assert "left out: 4 of r1" in page.shown
    (fewer / "results.json").write_text(
        (fewer / "results.json").read_text().replace('"fpr_limit": 0.3', '"fpr_limit": 0.1')
    )
    refused = page_of([runs["r1"], fewer], tmp_path)
    assert "not compared: they differ in fpr_limit" in refused.shown and "baseline" not in refused.shown


def test_tables_hold_every_category_macro_and_pooled(runs):
    run = load_run(runs["cgro"])
    rows = category_rows(run, "zeroed")
    assert [r["name"] for r in rows] == ["board", "bolt", "tile", "macro mean", "pooled"]
    expected = run.results["categories"]["bolt"]["pixel_zeroed"]["pixel_auroc"]
    assert rows[1]["cells"][4]["text"] == f"{100 * expected:.1f}"
    assert rows[3]["cells"][4]["interval"].startswith("[")
    assert any("board/broken.png" in line for line in notes(run))


def test_gallery_is_worst_first_and_joins_runs_by_image(runs):
    both = load_runs([runs["r1"], runs["cgro"]])
    made = gallery(both, 100)
    assert made["views"] == ["r1", "cgro"] and len(made["items"]) == len(made["thumbs"]) == 12 and made["missing"] == 0
    assert all(len(i["cells"]) == 2 and all(i["cells"]) for i in made["items"])
    worst = [max(c["bad"] for c in i["cells"]) for i in made["items"]]
    assert worst == sorted(worst, reverse=True)
    anomalous = next(i for i in made["items"] if i["gt"])
    assert anomalous["outline"] and anomalous["cells"][0]["pixel_auroc"] is not None
    few = gallery(both, 5)
    assert len(few["items"]) == 5 and few["total"] == 12 and few["items"][0]["id"] == made["items"][0]["id"]
    assert badness({"gt_label": 1, "pred_score": None, "pred_label": None}) == 1.5


def test_training_run_shows_before_and_after_and_no_secret(runs, tmp_path):
    run = load_run(runs["train"])
    assert len(run.steps) == 60 and [v.name for v in run.views] == ["train, step 1", "train, step 60"]
    page = page_of([runs["train"]], tmp_path)
    assert "s3cr3t" not in (tmp_path / "r.html").read_text()
    items = json.loads(page.scripts["data"])["items"]
    assert len(items) == 4 and all(c["map"] for i in items for c in i["cells"])


def test_steps_as_verl_logs_them(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "data": {"reward/format/normal": 0.5}}\n{"step": 1, "data": {}}\n{"step": 3, "da')
    assert read_steps(path) == [{"step": 1}, {"step": 2, "reward/format/normal": 0.5}]
    path.write_text('{"no": 1}\n{"step": 1}\n')
    with pytest.raises(UserError, match="line 1"):
        read_steps(path)


def test_samples_as_the_trainer_writes_them(tmp_path):
    sample = {
        "id": "",
        "category": "c",
        "gt_label": 1,
        "answer": "yes",
        "pred_label": 1,
        "response": "r",
        "reasoning": "q",
    }
    sample |= {"well_formed": True, "problem": None, "jaccard": 0.5, "n_kept": 1, "fallback": False}
    sample |= {
        "tokens": [{"text": "a", "s_t": 0.1, "s_i": -1, "weight": 0.5, "kept": True}],
        "grid_map": [[0, 1], [2, 3]],
    }
    folder = tmp_path / "run" / "samples" / "step_000010"
    folder.mkdir(parents=True)
    write_json(folder / "00.json", sample | {"image": "00.png"})
    Image.new("RGB", (8, 8)).save(folder / "00.png")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 10, "data": {"timing_s/gen": 1.5}}\n')
    made = gallery([load_run(tmp_path / "run")], 10)
    cell = made["items"][0]["cells"][0]
    assert made["items"][0]["id"] == "00" and made["thumbs"][0] and cell["tokens"] == [["a", 0.1, -1, 0.5, True]]
    assert cell["map"]["high"] == 3 and cell["bad"] == 0
    write_json(folder / "01.json", {"id": "x"})
    with pytest.raises(UserError, match="lacks gt_label"):
        load_run(tmp_path / "run")
    # Validations are of the same images each time: where there are two, they are what is shown, with the best between.
    for step in (0, 5, 10, 15):
        (validated := folder.parent / f"validation_{step:06d}").mkdir()
        write_json(validated / "00.json", sample | {"jaccard": step / 20})
    (tmp_path / "run" / "best_step.txt").write_text("5\n")
    views = load_run(tmp_path / "run").views
    assert [view.name for view in views] == [f"run, validation at step {step}" for step in (0, 5, 15)]
    assert [view.rows["00"]["jaccard"] for view in views] == [0.0, 0.25, 0.75]


def test_mistakes_are_named(runs, tmp_path):
    with pytest.raises(UserError, match="not a directory"):
        load_run(tmp_path / "nothing")
    with pytest.raises(UserError, match="neither"):
        load_run(tmp_path)
    write_json(tmp_path / "results.json", {"format": "realad-results/0"})
    with pytest.raises(UserError, match="realad-results/0"):
        load_run(tmp_path)
    (tmp_path / "results.json").unlink()
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(UserError, match="not finished"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="twice"):
        load_runs([runs["r1"], runs["r1"]])
    with pytest.raises(UserError, match="max_images"):
        build_report([runs["r1"]], tmp_path / "r.html", max_images=0)


def test_credentials_are_not_shown():
    settings = {"wandb": {"api_key": "x", "project": "p"}, "hf_token": "x", "max_new_tokens": 5, "password": "x"}
    assert shown_settings(settings) == {"wandb.project": "p", "max_new_tokens": 5}


def test_missing_images_are_counted_not_fatal(runs, tmp_path):
    shutil.copytree(runs["r1"], tmp_path / "moved", ignore=shutil.ignore_patterns("thumbs"))
    made = build_report([tmp_path / "moved"], tmp_path / "r.html")
    assert made["images_missing"] == 12


def test_small_maps_and_overlay():
    grid = np.array([[0.0, 2.0], [1.0, 4.0]], np.float32)
    made = small_map(grid)
    assert (made["rows"], made["cols"], made["low"], made["high"]) == (2, 2, 0, 4)
    assert small_map(np.zeros((3, 3), np.float32))["data"] == "AAAAAAAAAAAA"
    assert small_map(np.ones((500, 400), np.float32))["rows"] == 64
    picture = overlay(Image.new("RGB", (40, 30), (10, 200, 10)), grid)
    assert picture.size == (40, 30) and picture.getpixel((0, 0)) == (10, 200, 10)
    assert picture.getpixel((39, 29))[0] > 100


def test_absolute_paths_are_shortened_and_said_once(runs, tmp_path):
    assert short_path("/home/me/work/runs/mine/exported/global_step_20") == ".../mine/exported/global_step_20"
    assert short_path("/data/model") == "/data/model" and short_path("Qwen/Qwen2.5-VL") == "Qwen/Qwen2.5-VL"
    for name in ("a", "b"):
        shutil.copytree(runs["r1"], tmp_path / name)
        settings = read_json(tmp_path / name / "settings.json")
        write_json(tmp_path / name / "settings.json", settings | {"model": "/home/me/secret/place/of/a/model"})
    both = load_runs([tmp_path / "a", tmp_path / "b"])
    build_report([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html")
    assert Page((tmp_path / "both.html").read_text()).shown.count("95 % intervals") == 1  # notes of both, said once
    assert len(about(both)) == 1 and about(both)[0].endswith(".../of/a/model")
    both[1].settings["model"] = "Qwen/Qwen2.5-VL"
    assert [line.split(":")[0] for line in about(both)] == ["a", "b"]
    build_report([tmp_path / "a"], tmp_path / "r.html")
    shown = Page((tmp_path / "r.html").read_text()).shown  # the download has it whole
    assert ".../of/a/model" in shown and "/home/me" not in shown


def test_lines_of_the_demo(tmp_path):
    names = {"before": 0.2, "alike": 0.25, "after": 1.0}
    folders = [fabricate_evaluation(tmp_path / name, 40, seed=3, skill=skill) for name, skill in names.items()]
    before, alike, after = load_runs(folders)
    found = {line.split("  ")[1]: line for line in changes(before, after)}
    assert {"Image ACC", "Pixel AUROC", "AUPRO"} <= set(found) and "Image F1-max" not in found
    right = [100 * run.results["macro_mean"]["image"]["image_acc"] for run in (before, after)]
    line = found["Image ACC"]
    assert line.split()[2:6] == [f"{right[0]:.1f}", "->", f"{right[1]:.1f}", "%"]
    assert "noise" not in line and re.search(r"\[\+\d", line)
    assert all(line.endswith("within noise") for line in changes(before, alike) if "Image" in line)
