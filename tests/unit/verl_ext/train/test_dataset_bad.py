"""Rows that verl's dataset would end the run for: each is replaced by the next good one, and says why."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image

from realad_verl.data.datasets.base import Sample
from realad_verl.data.rows import SCHEMA, make_row
from realad_verl.errors import UserError
from realad_verl.tiny import tiny_model_dir


def row(tmp_path, name: str, png: bytes, images: int = 1) -> dict:
    sample = Sample(name, tmp_path / name, 1, "thing", "scratch", None, "all")
    made = make_row(sample, png, "train", 0)
    return made | {"images": made["images"] * images}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((168, 168), 80).convert("CMYK").convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture()
def dataset(tmp_path, monkeypatch):
    """Builds the data set that the recipes name, from rows, through verl's own look-up."""
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from verl.utils import hf_processor
    from verl.utils.dataset.rl_dataset import get_dataset_class

    from realad_verl.verl_ext.recipe.compose import compose_recipe

    config = compose_recipe("local/cgro_tiny_cpu", [f"+data.cache_dir={tmp_path}"]).data
    processor = hf_processor(str(tiny_model_dir()))

    def build(rows):
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "rows.parquet")
        files, plain = str(tmp_path / "rows.parquet"), OmegaConf.create(OmegaConf.to_container(config, resolve=True))
        return get_dataset_class(plain)(files, processor.tokenizer, plain, processor)

    return build


def test_a_bad_row_is_replaced_and_says_why(tmp_path, dataset):
    good = png()
    rows = [
        row(tmp_path, "good", good),
        row(tmp_path, "cut", good[: len(good) // 2]),
        row(tmp_path, "two images, one place", good, images=2),
        row(tmp_path, "no image", good, images=0),
        row(tmp_path, "also good", good),
        row(tmp_path, "text", b"no pixels"),
    ]
    found = [dataset(rows)[i] for i in range(6)]
    assert [f["extra_info"]["id"] for f in found] == ["good", *["also good"] * 4, "good"]
    reasons = [f["extra_info"].get("realad_replaced") for f in found]
    assert reasons[0] is None and reasons[4] is None
    for reason, words in ((1, "truncated"), (2, "image_offset"), (3, "no image"), (5, "cannot identify")):
        assert words in reasons[reason], reasons
    for one in found:
        (image,) = [part["image"] for part in one["raw_prompt"][0]["content"] if part["type"] == "image"]
        assert image.mode == "RGB" and image.size == (168, 168)


def test_no_good_row_at_all(tmp_path, dataset):
    with pytest.raises(UserError, match="no row of .*rows.parquet can be used; the first: row 0"):
        dataset([row(tmp_path, str(i), b"") for i in range(3)])[0]
