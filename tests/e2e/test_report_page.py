"""The report in a real browser: it opens fast, filters work, both themes and a phone's width work, nothing is sent."""

import base64
import csv
import io
import json
import os
import sys
from pathlib import Path

import pytest
from browser import chromium, open_tab

from realad_verl.report.page import build_report

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "report"))
from fabricated_runs import fabricate_evaluation, fabricate_training

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium here (Debian: apt-get install chromium)")
HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'><b>bold</b>"
OPEN_SECONDS = 3.0  # of a page of 1,000 images
SET = """(([name, value]) => {{ const e = document.forms.filters.elements[name];
  if (e.type === 'checkbox') e.checked = value; else e.value = value;
  e.dispatchEvent(new Event('input', {{bubbles: true}})); }})({})"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with open_tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    base = tmp_path_factory.mktemp("pages")
    cgro = fabricate_evaluation(base / "cgro", 40, seed=1, hostile=HOSTILE, thumbs=40)
    r1 = fabricate_evaluation(base / "r1", 40, seed=2, skill=0.5, thumbs=40)
    training = fabricate_training(base / "train")
    build_report([cgro], base / "one.html")
    build_report([r1, cgro], base / "two.html")
    build_report([training], base / "train.html")
    return base


@pytest.fixture(autouse=True)
def no_problem(tab):
    """No test may leave a console message, an exception or a request behind."""
    tab.problems.clear()
    yield
    tab.run("new Promise(r => requestAnimationFrame(() => setTimeout(r, 50)))")
    assert not tab.problems


def choose(tab, **values):
    for name, value in values.items():
        tab.run(SET.format(json.dumps([name, value])))
    return tab.run("document.querySelector('#count').textContent")


def items(tab):
    return tab.run(
        "JSON.parse(document.querySelector('#data').textContent).items.map(({cells, ...i}) => ({...i, cells: "
        "cells.map(c => ({answer: c.answer, pred_label: c.pred_label, bad: c.bad, well_formed: c.well_formed}))}))"
    )


def cards(tab):
    return tab.run("[...document.querySelectorAll('.card .name bdi')].map(e => e.textContent)")


def test_filters_show_what_they_say(tab, pages):
    tab.open(pages / "one.html")
    everything = items(tab)
    assert choose(tab) == "40 images"
    expected = {
        ("category", "tile"): [i for i in everything if i["category"] == "tile"],
        ("defect", "crack"): [i for i in everything if i["defect"] == "crack"],
        ("verdict", "wrong"): [i for i in everything if i["cells"][0]["pred_label"] != i["gt"]],
        ("verdict", "right"): [i for i in everything if i["cells"][0]["pred_label"] == i["gt"]],
        ("verdict", "missed"): [i for i in everything if i["gt"] and i["cells"][0]["pred_label"] != 1],
        ("verdict", "alarm"): [i for i in everything if not i["gt"] and i["cells"][0]["pred_label"] == 1],
        ("verdict", "form"): [i for i in everything if not i["cells"][0]["well_formed"]],
    }
    for (name, value), wanted in expected.items():
        assert 0 < len(wanted) < 40, (name, value)
        assert choose(tab, **{name: value}) == f"{len(wanted)} of 40 images"
        assert set(cards(tab)) <= {i["id"] for i in wanted}
        choose(tab, **{name: ""})
    assert choose(tab, text="BREAKS the regular") != "40 images"
    assert choose(tab, text="no such words") == "0 of 40 images"
    assert "No image fits" in tab.run("document.querySelector('#cards').textContent")
    assert choose(tab, text="") == "40 images"


def test_worst_cases_first_and_other_orders(tab, pages):
    tab.open(pages / "one.html")
    bad = {i["id"]: i["cells"][0]["bad"] for i in items(tab)}
    shown = [bad[name] for name in cards(tab)]
    assert shown == sorted(shown, reverse=True) and shown[0] > 1
    choose(tab, order="best")
    shown = [bad[name] for name in cards(tab)]
    assert shown == sorted(shown)
    choose(tab, order="id")
    assert cards(tab) == sorted(cards(tab))


def test_pictures_maps_and_outlines_are_drawn(tab, pages):
    tab.open(pages / "one.html")
    loaded = "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"
    assert set(tab.run(loaded)) == {320}
    pixels = (
        "(s => [...document.querySelector(s).getContext('2d').getImageData(0, 0, 16, 12).data])('.card canvas.heat')"
    )
    before = tab.run(pixels)
    assert len({tuple(before[k : k + 4]) for k in range(0, len(before), 4)}) > 20
    choose(tab, shared=True)
    assert tab.run(pixels) != before
    choose(tab, shared=False)
    assert tab.run(pixels) == before
    visible = "[...document.querySelectorAll('.pic svg')].filter(e => e.getBoundingClientRect().width > 0).length"
    assert tab.run(visible) > 0
    choose(tab, outline=False)
    assert tab.run(visible) == 0
    choose(tab, opacity="20")
    assert tab.run("getComputedStyle(document.querySelector('.card canvas.heat')).opacity") == "0.2"


def test_scrolling_brings_the_rest(tab, pages):
    tab.open(pages / "one.html")
    assert len(cards(tab)) < 40
    tab.run("new Promise(r => { scrollTo(0, 1e6); setTimeout(() => { scrollTo(0, 1e6); setTimeout(r, 600); }, 400); })")
    assert len(cards(tab)) == 40 == len(set(cards(tab)))


def test_model_text_is_text(tab, pages):
    tab.open(pages / "one.html")
    choose(tab, text="window.pwned")
    assert tab.run("window.pwned === undefined")
    assert HOSTILE in tab.run("document.querySelector('.card .words').textContent")
    assert tab.run("document.querySelectorAll('.card b, .card script').length") == 0


def test_tokens_tell_their_figures(tab, pages):
    tab.open(pages / "one.html")
    hover = "document.querySelector('.card .kept').dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
    tab.run(hover)
    told = tab.run("document.querySelector('#tip').textContent")
    assert all(part in told for part in ("w ", "S_T ", "S_I ", "kept for the map"))
    assert tab.run("!document.querySelector('#tip').hidden")
    shades = tab.run(
        "[...document.querySelectorAll('.card .words span')].map(e => getComputedStyle(e).backgroundColor)"
    )
    assert len(set(shades)) > 10


def test_one_image_in_full_and_the_next(tab, pages):
    tab.open(pages / "one.html")
    names = cards(tab)
    tab.run("document.querySelector('.card .pics').click()")
    title = "document.querySelector('#zoom bdi').textContent"
    assert tab.run("document.querySelector('#zoom').open") and tab.run(title) == names[0]
    tab.run("document.querySelector('#zoom [data-step=\"1\"]').click()")
    assert tab.run(title) == names[1]
    tab.run("document.querySelector('#zoom [data-close]').click()")
    assert not tab.run("document.querySelector('#zoom').open")


def test_two_runs_side_by_side(tab, pages):
    tab.open(pages / "two.html")
    everything = items(tab)
    differing = [i for i in everything if len({c["answer"] for c in i["cells"]}) > 1]
    assert choose(tab, verdict="differ") == f"{len(differing)} of 40 images"
    wrong = [i for i in everything if i["cells"][1]["pred_label"] != i["gt"]]
    assert choose(tab, verdict="wrong", view="1") == f"{len(wrong)} of 40 images"
    assert tab.run("document.querySelector('.card').querySelectorAll('canvas.heat').length") == 2


@pytest.mark.parametrize("page", ["one.html", "two.html"])
def test_kept_and_zeroed_switches_all_that_depends_on_it(tab, pages, page):
    tab.open(pages / page)
    shown = (
        "[...new Set([...document.querySelectorAll('[data-shows]')].filter(e => !e.hidden).map(e => e.dataset.shows))]"
    )
    sections = "[...document.querySelectorAll('[data-shows=zeroed]')].map(e => e.closest('section').id)"
    hidden = (
        "[...document.querySelectorAll('canvas.called-normal')]"
        ".filter(e => getComputedStyle(e).visibility === 'hidden').length"
    )
    figures = "document.querySelector('#metrics [data-shows]:not([hidden])').textContent"
    assert tab.run(shown) == ["kept"] and tab.run(hidden) == 0
    assert set(tab.run(sections)) == {"metrics", "categories", "curves"}
    before = tab.run(figures)
    tab.run("document.querySelector('#curves [data-variant=zeroed]').click()")
    assert tab.run(shown) == ["zeroed"] and tab.run(hidden) > 0
    assert tab.run(figures) != before
    pressed = "[...document.querySelectorAll('[data-variant=zeroed]')].map(e => e.getAttribute('aria-pressed'))"
    assert set(tab.run(pressed)) == {"true"}


def test_tables_are_sorted_by_a_click(tab, pages):
    tab.open(pages / "one.html")
    column = (
        "[...document.querySelectorAll('#categories [data-shows=kept] tbody tr')]"
        ".map(r => [r.cells[0].textContent, r.cells[6].firstChild.textContent])"
    )
    head = "document.querySelectorAll('#categories [data-shows=kept] thead tr:nth-child(2) th')[4]"
    before = tab.run(column)
    tab.run(f"{head}.click()")
    falling = tab.run(column)
    values = [float(value) for _, value in falling[:3]]
    assert values == sorted(values, reverse=True) and [name for name, _ in falling[3:]] == ["macro mean", "pooled"]
    assert {tuple(row) for row in falling} == {tuple(row) for row in before}
    tab.run(f"{head}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Enter', bubbles: true}}))")
    assert [float(value) for _, value in tab.run(column)[:3]] == sorted(values)
    assert tab.run(f"{head}.getAttribute('aria-sort')") == "ascending"


def test_threshold_of_the_image_decision(tab, pages):
    tab.open(pages / "one.html")
    run = tab.run("JSON.parse(document.querySelector('#data').textContent).runs[0]")

    def counts():
        return [int(tab.run(f"document.querySelector('#n-{key}').textContent")) for key in ("tp", "fp", "fn", "tn")]

    def expected(at):
        pairs = [(score >= at, gt) for score, gt in zip(run["score"], run["gt"], strict=True)]
        return [pairs.count(pair) for pair in ((True, 1), (True, 0), (False, 1), (False, 0))]

    assert counts() == expected(run["image"])
    tab.run("(e => { e.value = 1000; e.dispatchEvent(new Event('input')); })(document.querySelector('#decide'))")
    assert counts() == expected(max(run["score"])) != expected(run["image"])
    tp, fp, fn, _ = counts()
    assert tab.run("document.querySelector('#n-precision').textContent") == f"{100 * tp / (tp + fp):.1f}"
    assert tab.run("document.querySelector('#n-recall').textContent") == f"{100 * tp / (tp + fn):.1f}"
    tab.run("document.querySelector('#decide-mark').click()")
    assert counts() == expected(run["image"])
    assert "best on this very set" in tab.run("document.querySelector('#decide-mark').textContent")


def test_threshold_of_the_map_moves_region_and_overlap(tab, pages):
    tab.open(pages / "one.html")
    area = (
        "[...document.querySelectorAll('.card canvas.region')].map(c => { let n = 0; "
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; "
        "for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; })"
    )
    overlap = "[...document.querySelectorAll('.card .overlap')].filter(e => !e.hidden).map(e => e.textContent)"
    choose(tab, level="200")
    low, first = tab.run(area), tab.run(overlap)
    choose(tab, level="700")
    high, second = tab.run(area), tab.run(overlap)
    assert all(a >= b for a, b in zip(low, high, strict=True)) and sum(low) > sum(high) > 0
    assert first and len(first) == len(second) and first != second
    choose(tab, level="0")
    assert set(tab.run("[...document.querySelectorAll('.card canvas.region')].map(c => c.width * c.height)")) == set(
        tab.run(area)
    )
    choose(tab, cut=False)
    assert tab.run("[...document.querySelectorAll('canvas.region')].every(c => getComputedStyle(c).display === 'none')")
    tab.run("document.querySelector('#cut-mark').click()")
    assert tab.run("document.forms.filters.elements.cut.checked")


def test_downloads_hold_every_image_and_figure(tab, pages):
    tab.open(pages / "two.html")
    catch = """new Promise(done => { URL.createObjectURL = blob => { blob.text().then(done); return 'data:,'; };
      HTMLAnchorElement.prototype.click = function () {}; document.querySelector('[data-download=KIND]').click(); })"""
    rows = list(csv.reader(io.StringIO(tab.run(catch.replace("KIND", "csv")))))
    assert len(rows) == 41 and rows[0][:4] == ["id", "category", "defect_type", "gt_label"]
    assert "r1: pred_score" in rows[0] and "cgro: pixel_auroc" in rows[0]
    assert {row[0] for row in rows[1:]} == {i["id"] for i in items(tab)}
    found = json.loads(tab.run(catch.replace("KIND", "json")))
    stored = json.loads((pages / "cgro" / "results.json").read_text())
    assert found["runs"][1]["results"]["macro_mean"] == {k: v for k, v in stored["macro_mean"].items() if k != "curves"}
    assert found["comparison"]["n_images"] == 40


def test_pictures_keep_their_aspect(tab, tmp_path):
    run = fabricate_evaluation(tmp_path / "wide", 6, thumbs=6)
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    for line in lines[:3]:
        line["image_size"] = [100, 400]
    (run / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_report([run], tmp_path / "wide.html")
    tab.open(tmp_path / "wide.html")
    shapes = tab.run(
        "Object.fromEntries([...document.querySelectorAll('.card')].map(c => [c.querySelector('bdi').textContent, "
        "(b => b.width / b.height)(c.querySelector('.pic').getBoundingClientRect())]))"
    )
    for line in lines[:6]:
        assert shapes[line["id"]] == pytest.approx(line["image_size"][1] / line["image_size"][0], rel=0.02)


def test_meanings_and_names_are_read_by_touch(tab, pages):
    tab.open(pages / "one.html", width=390)
    text = tab.run("document.querySelector('.meanings').innerText")
    assert "false alarms" in text and "lower is better" in text
    cut = (
        "[...document.querySelectorAll('.tile dt')]"
        ".filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"
    )
    assert tab.run(cut) == []
    assert tab.run("document.querySelectorAll('dt[title], th[title]').length") == 0


def test_print_shows_the_figures_and_hides_the_controls(tab, pages):
    tab.open(pages / "two.html", width=720)  # A4 within its margins
    tab.call("Emulation.setEmulatedMedia", media="print")
    try:
        wide = (
            "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
            ".map(e => [e.closest('section').id, e.scrollWidth, e.clientWidth])"
        )
        assert tab.run(wide) == []  # paper does not scroll
        seen = "(s => getComputedStyle(document.querySelector(s)).display !== 'none')"
        assert not tab.run(f"{seen}('.filters')") and not tab.run(f"{seen}('.downloads')")
        assert tab.run(f"{seen}('.compare')")
        assert tab.run("document.querySelector('.meanings').getBoundingClientRect().height") > 0
        if folder := os.environ.get("REALAD_SCREENSHOTS"):
            printed = tab.call("Page.printToPDF", printBackground=True)["data"]
            (Path(folder) / "two.pdf").write_bytes(base64.b64decode(printed))
    finally:
        tab.call("Emulation.setEmulatedMedia", media="")


@pytest.mark.parametrize("page", ["one.html", "two.html", "train.html"])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_both_themes_and_a_phone(tab, pages, page, theme, width):
    tab.open(pages / page, width=width, theme=theme)
    assert tab.run("document.documentElement.scrollWidth") <= width  # nothing sticks out sideways
    back = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    assert (sum(tab.run(back)) < 200) == (theme == "dark")
    ink = "getComputedStyle(document.querySelector('.figures text')).fill.match(/\\d+/g).map(Number)"
    assert (sum(tab.run(ink)) > 400) == (theme == "dark")
    tab.run("document.querySelector('#theme').click(); document.querySelector('#theme').click()")  # to dark
    assert sum(tab.run(back)) < 200
    tab.run("document.querySelector('#theme').click()")  # back to the system's
    if folder := os.environ.get("REALAD_SCREENSHOTS"):
        for part in ("top", "gallery"):
            tab.run(f"document.querySelector('#{part}').scrollIntoView()")
            tab.run("new Promise(r => setTimeout(r, 300))")
            tab.screenshot(Path(folder) / f"{page.removesuffix('.html')}-{theme}-{width}-{part}.png")


def test_a_thousand_images_open_fast(tab, tmp_path):
    run = fabricate_evaluation(tmp_path / "many", 1000, thumbs=40)
    made = build_report([run], tmp_path / "many.html", max_images=1000)
    assert made["images"] == 1000
    seconds = tab.open(tmp_path / "many.html") / 1e3
    assert choose(tab) == "1000 images" and cards(tab)
    print(f"\n1,000 images, {made['bytes'] / 1e6:.1f} MB: {seconds:.2f} s")
    assert seconds < OPEN_SECONDS
