"""A run's folder: nothing lost, nothing twice, nothing mixed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from realad_verl.errors import UserError
from realad_verl.evaluate.records import file_stem, load_map, localization_fields, sample_fields, save_map
from realad_verl.evaluate.store import ResultStore, parse_shard, read_json, read_rows, write_json


def test_rows_survive_a_torn_line(tmp_path):
    store = ResultStore(tmp_path, {"a": 1})
    with store.writer() as writer:
        writer.append({"id": "x", "response": "line\u2028separator\nand ümlaut"})
        writer.append({"id": "y"})
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"id": "z", "respo' + "n" * 200_000)  # killed while writing
    assert [r["id"] for r in store.rows()] == ["x", "y"]
    with store.writer() as writer:
        writer.append({"id": "z"})
    assert [r["id"] for r in store.rows()] == ["x", "y", "z"]
    assert store.rows()[0]["response"] == "line\u2028separator\nand ümlaut"


def test_torn_first_line(tmp_path):
    store = ResultStore(tmp_path, {})
    (tmp_path / "results.jsonl").write_text('{"id": "to')
    with store.writer() as writer:
        writer.append({"id": "b"})
    assert [r["id"] for r in store.rows()] == ["b"]


def test_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"id": "a"}\nnonsense\n{"id": "b"}\n')
    with pytest.raises(UserError, match="line 2"):
        read_rows(tmp_path)


def test_other_settings_are_refused_with_both_values(tmp_path):
    ResultStore(tmp_path, {"model": "m1", "split": "test", "size": (1, 2)})
    ResultStore(tmp_path, {"model": "m1", "split": "test", "size": (1, 2)})
    with pytest.raises(UserError, match="split was 'test', now 'train'"):
        ResultStore(tmp_path, {"model": "m1", "split": "train", "size": (1, 2)})


def test_shards_write_side_by_side_and_an_id_counts_once(tmp_path):
    store = ResultStore(tmp_path, {})
    with store.writer((1, 2)) as first, store.writer((2, 2)) as second:
        first.append({"id": "a", "from": 1})
        second.append({"id": "b"})
        second.append({"id": "a", "from": 2})
        with pytest.raises(UserError, match="another process"), store.writer((1, 2)):
            pass
    assert [r["id"] for r in store.rows()] == ["a", "b"]


@pytest.mark.parametrize("text", ["0/2", "3/2", "a/b", "2", "1/0", "-1/2", "1/2/3"])
def test_bad_shard(text):
    with pytest.raises(UserError, match="shard"):
        parse_shard(text)


def test_shard():
    assert parse_shard("2/4") == (2, 4) and parse_shard(None) == (1, 1)


def test_json_is_replaced_whole_and_never_holds_nan(tmp_path):
    write_json(tmp_path / "r.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "r.json", {"a": float("nan")})
    assert read_json(tmp_path / "r.json") == {"a": 1}
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path / "missing.json")


@pytest.mark.parametrize("peak", [1e-7, 3e-3, 1.0, 40.0])
def test_saved_map_is_half_a_step_off_at_most(tmp_path, peak):
    anomaly_map = (np.random.default_rng(0).random((15, 20)) * peak).astype(np.float32)
    scale = save_map(tmp_path / "maps" / "m.png", anomaly_map)
    back = load_map(tmp_path / "maps" / "m.png", scale)
    assert np.abs(back - anomaly_map).max() <= anomaly_map.max() / 131070 * 1.01
    assert back.max() == pytest.approx(anomaly_map.max(), rel=1e-6)


def test_flat_and_bad_maps(tmp_path):
    assert save_map(tmp_path / "z.png", np.zeros((2, 2))) == 0.0
    assert not load_map(tmp_path / "z.png", 0.0).any()
    with pytest.raises(ValueError, match="finite"):
        save_map(tmp_path / "n.png", np.full((2, 2), np.nan))
    with pytest.raises(UserError, match="16-bit"):
        load_map(tmp_path / "missing.png", 1.0)


def test_file_stems_differ():
    assert file_stem("a/b") != file_stem("a_b") and "/" not in file_stem("a/b")
    assert len(file_stem("x" * 500)) < 100


def test_a_row_is_plain_json(tmp_path):
    token = SimpleNamespace(text=" crack", s_t=0.123456789, s_i=-1.5, weight=0.7, kept=True)
    localization = SimpleNamespace(
        image_size=(4, 6),
        response="r",
        reasoning="q",
        answer="yes",
        pred_label=1,
        pred_score=0.9,
        well_formed=True,
        problem=None,
        jaccard=0.5,
        n_kept=1,
        fallback=False,
        grid_map=np.ones((2, 3), np.float32),
        tokens=[token],
    )
    sample = SimpleNamespace(
        id="c/1", category="c", defect_type="crack", split="test", label=True, path=tmp_path / "c/1.png", mask_path=None
    )
    row = sample_fields(sample, tmp_path) | localization_fields(localization, tmp_path, sample.id)
    row = json.loads(json.dumps(row))
    assert row["image"] == "c/1.png" and row["gt_label"] == 1 and row["mask"] is None
    assert row["tokens"] == [[" crack", 0.1235, -1.5, 0.7, True]]
    assert load_map(tmp_path / row["map"], row["map_scale"]).shape == (2, 3)
