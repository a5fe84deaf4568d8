"""`realad evaluate` with the shipped tiny model on a made-up folder data set: whole, stopped, resumed, in shards."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from realad_verl.cli import app
from realad_verl.data.datasets import DATASETS
from realad_verl.errors import UserError
from realad_verl.evaluate.engines import TransformersEngine, choose_engine, model_identity
from realad_verl.evaluate.runner import evaluate_samples, finish, limited, pending, read_references
from realad_verl.evaluate.store import ResultStore, read_json
from realad_verl.evaluate.summary import SummaryConfig
from realad_verl.tiny import tiny_model_dir

SMALL = ("--image-size", "56", "--max-new-tokens", "6", "--engine", "transformers", "--device", "cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """An MVTec-like folder: 4 normal and 4 anomalous images with masks, one of them no image at all."""
    base = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for kind in ("good", "crack"):
        (base / "nut" / "test" / kind).mkdir(parents=True)
        for i in range(4):
            picture = rng.integers(0, 255, (40, 60, 3), np.uint8)
            Image.fromarray(picture).save(base / "nut" / "test" / kind / f"{i:03d}.png")
    (base / "nut" / "train" / "good").mkdir(parents=True)
    Image.fromarray(picture).save(base / "nut" / "train" / "good" / "000.png")
    (base / "nut" / "ground_truth" / "crack").mkdir(parents=True)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 20:40] = 255
    for i in range(4):
        Image.fromarray(mask).save(base / "nut" / "ground_truth" / "crack" / f"{i:03d}_mask.png")
    (base / "nut" / "test" / "good" / "003.png").write_bytes(b"not an image")
    return base


@pytest.fixture(scope="module")
def samples(root):
    return DATASETS["mvtec_ad"].samples(root, "test")


@pytest.fixture(scope="module")
def engine():
    from realad_verl.localize import Localizer

    return TransformersEngine(Localizer.from_pretrained(tiny_model_dir(), max_new_tokens=6))


def test_sampled_answers(root, samples, engine, tmp_path):
    """Each image's own share of right ones, of what the engine draws by the seed of the batch; no answer is wrong."""
    store = ResultStore(tmp_path, {})
    long = TransformersEngine(engine.localizer.__class__.from_pretrained(tiny_model_dir(), max_new_tokens=40))
    evaluate_samples(samples, long, store, root, image_size=168, batch_size=8, samples_per_image=3)
    rows = [row for row in store.rows() if not row.get("error")]
    images = [
        Image.open(root / row["image"]).convert("RGB").resize((168, 168), Image.Resampling.BICUBIC) for row in rows
    ]
    texts = [
        [long.localizer.tokenizer.decode(ids, skip_special_tokens=True) for ids in of_image]
        for of_image in long.sample(images, 3, zlib.crc32(rows[0]["id"].encode()))
    ]
    words = [[text.split("<answer>")[-1].split("<")[0].strip() for text in some] for some in texts]
    said = [[{"yes": 1, "no": 0}.get(word) for word in some] for some in words]
    assert [row["sampled"] for row in rows] == said and {0, 1} & set(sum(said, []))
    results = finish(samples, store, SummaryConfig())
    right = [np.mean([label == row["gt_label"] for label in row["sampled"]]) for row in rows]
    assert results["pooled"]["answers"]["sampled_acc"] == pytest.approx(np.mean(right))
    low, high = results["intervals"]["kept"]["nut"]["sampled_acc"]
    assert low <= np.mean(right) <= high


def realad(*arguments: str, wrong: bool = False) -> str:
    """Run the command in this process; its output, or with ``wrong`` the message of the mistake."""
    done = CliRunner().invoke(app, list(arguments))
    if wrong:
        assert isinstance(done.exception, UserError), done.output
        return str(done.exception)
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.stdout


def test_rows_maps_thumbs_and_figures(samples, engine, root, tmp_path):
    store = ResultStore(tmp_path, {"a": 1})
    seen = []
    bad = evaluate_samples(samples, engine, store, root, image_size=56, batch_size=3, on_image=lambda: seen.append(1))
    assert bad == 1 and len(seen) == 8
    results = finish(samples, store, SummaryConfig(), extra={"dataset": "mvtec_ad"})
    assert results == read_json(tmp_path / "results.json") and results["dataset"] == "mvtec_ad"
    assert [b["id"] for b in results["bad_images"]] == ["nut/test/good/003.png"]
    assert results["pooled"]["image"]["n_images"] == 7 and results["pooled"]["image"]["n_anomalous_images"] == 4
    assert results["pooled"]["pixel"]["n_normal_pixels"] == 7 * 2400 - 4 * 200
    drawn = read_json(tmp_path / "images.json")
    assert len(drawn) == 7 and sum("outline" in image for image in drawn.values()) == 4
    row = next(r for r in store.rows() if not r.get("error"))
    assert row["image_size"] == [40, 60] and row["image"] == row["id"] and (tmp_path / row["thumb"]).is_file()
    assert row["pred_score"] is None or 0 <= row["pred_score"] <= 1


def test_stopped_run_continues_and_nothing_is_done_twice(samples, engine, root, tmp_path):
    class Stops(TransformersEngine):
        def __call__(self, images):
            if self.calls == 2:
                raise KeyboardInterrupt
            self.calls += 1
            return super().__call__(images)

    store, stops = ResultStore(tmp_path, {}), Stops(engine.localizer)
    stops.calls = 0
    with pytest.raises(KeyboardInterrupt):
        evaluate_samples(samples, stops, store, root, image_size=56, batch_size=2)
    assert len(store.rows()) == 4 and finish(samples, store, SummaryConfig()) is None
    assert not (tmp_path / "results.json").exists()
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"id": "nut/test')  # as if killed while writing
    todo = pending(samples, {r["id"] for r in store.rows()}, (1, 1))
    assert len(todo) == 4
    evaluate_samples(todo, engine, store, root, image_size=56, batch_size=2)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(lines) == 8 == len({json.loads(line)["id"] for line in lines})
    whole = ResultStore(tmp_path / "whole", {})
    evaluate_samples(samples, engine, whole, root, image_size=56, batch_size=2)
    assert finish(samples, whole, SummaryConfig()) == finish(samples, store, SummaryConfig())


def test_shards_cover_everything_once(samples):
    parts = [pending(samples, set(), (k, 3)) for k in (1, 2, 3)]
    assert sorted(s.id for part in parts for s in part) == [s.id for s in samples]
    assert [s.id for s in pending(samples, {samples[0].id}, (1, 3))] == [samples[3].id, samples[6].id]


def test_a_small_limit_has_both_classes(samples):
    assert sorted(s.label for s in limited(samples, 4)) == [0, 0, 1, 1]
    assert {s.id for s in limited(samples, 4)} <= {s.id for s in limited(samples, 6)}
    assert limited(samples, None) == limited(samples, 100) == samples


def test_references(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": "a", "reasoning": "There is a crack."}\n\n')
    assert read_references(path) == {"a": "There is a crack."}
    path.write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match="line 1"):
        read_references(path)


def test_engine_and_model_identity(tmp_path):
    assert choose_engine("transformers") == "transformers"
    with pytest.raises(UserError, match="engine"):
        choose_engine("vlm")
    assert model_identity("org/name") == {"model": "org/name"}
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = model_identity(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"22")
    assert model_identity(str(tmp_path)) != before


def test_command_in_shards_then_report(root, tmp_path):
    common = (
        "evaluate",
        "mvtec_ad",
        "--root",
        str(root),
        "--model",
        str(tiny_model_dir()),
        "--out",
        str(tmp_path / "run"),
    )
    first = json.loads(realad(*common, *SMALL, "--shard", "1/2", "--json"))
    assert first["finished"] is False and first["missing"] == 4
    last = json.loads(realad(*common, *SMALL, "--shard", "2/2", "--json"))
    assert last["finished"] is True and last["pooled"]["image"]["n_images"] == 7 and last["versions"]["realad-verl"]
    error = realad(*common, *SMALL, "--method", "scoring.select=all", wrong=True)
    assert "other settings" in error and "scoring" in error
    made = json.loads(realad("report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html"), "--json"))
    assert made["images"] == 7 and (tmp_path / "r.html").stat().st_size == made["bytes"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--method", "scoring.selct=all"), "Did you mean 'select'"),
        (("--method", "select"), "SECTION.KEY=VALUE"),
        (("--pixel-size", "big"), "pixel_size"),
        (("--shard", "3/2"), "shard"),
    ],
)
def test_wrong_settings_end_at_once(root, tmp_path, wrong, said):
    common = ("evaluate", "mvtec_ad", "--root", str(root), "--model", "m", "--out", str(tmp_path / "run"))
    assert said in realad(*common, *wrong, wrong=True)
    assert not (tmp_path / "run").exists()
