"""Data files that cannot serve a run are refused before it starts, each with what is wrong."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from realad_verl.data.datasets import Sample
from realad_verl.data.rows import SCHEMA, make_row
from realad_verl.errors import UserError
from realad_verl.verl_ext.recipe.check import require_ok
from realad_verl.verl_ext.recipe.compose import compose_recipe


def refused(train, val) -> str:
    config = compose_recipe("local/cgro_tiny_cpu", [f"data.train_files={train}", f"data.val_files={val}"])
    with pytest.raises(UserError) as caught:
        require_ok(config)
    return str(caught.value)


@pytest.fixture()
def good(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56)).save(buffer, "PNG")
    sample = Sample("a", tmp_path / "a", 1, "c", "d", None, "all")
    rows = [make_row(sample, buffer.getvalue(), "train", i) for i in range(64)]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "good.parquet")
    return tmp_path / "good.parquet"


def test_good_files_are_taken(good):
    config = compose_recipe("local/cgro_tiny_cpu", [f"data.train_files={good}", f"data.val_files={good}"])
    assert not [problem for problem in require_ok(config) if problem.key.startswith("data.")]


@pytest.mark.parametrize("column", ["prompt", "images", "reward_model", "data_source"])
def test_a_missing_column_is_named(tmp_path, good, column):
    bad = tmp_path / "bad.parquet"
    pq.write_table(pq.read_table(good).drop_columns([column]), bad)
    message = refused(bad, good)
    assert "data.train_files" in message and f"lacks the columns {column}" in message and "realad prepare" in message
    assert "data.val_files" not in message


@pytest.mark.parametrize("content", [b"", b"not parquet", b"PAR1" + b"\0" * 100])
def test_what_is_no_parquet_file_is_named(tmp_path, good, content):
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(content)
    assert "data.val_files" in refused(good, bad) and "not a parquet file" in refused(good, bad)


def test_a_cut_file_is_named(tmp_path, good):
    bad = tmp_path / "bad.parquet"
    whole = good.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    assert "not a parquet file" in refused(bad, good)
