"""Calibration takes image labels only, enough of both classes, in an order that the seed decides."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from realad_verl.calibrate.images import LEAST, ImageReader, choose_images, class_counts
from realad_verl.errors import UserError


def parquet(path, normal=30, anomalous=40, **columns):
    rows = []
    for i in range(normal + anomalous):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(file, "PNG")
        truth = "no" if i < normal else "yes"
        rows.append(
            {
                "images": [{"bytes": file.getvalue()}],
                "reward_model": {"style": "rule", "ground_truth": truth},
                "extra_info": {"id": f"image {i}"},
                **columns,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=16)
    return path


def test_balanced_shuffled_and_repeatable(tmp_path):
    file = parquet(tmp_path / "a.parquet")
    chosen = choose_images([file], 48, 0)
    assert class_counts(chosen) == {"normal": 24, "anomalous": 24}
    assert choose_images([file], 48, 0) == chosen and choose_images([file], 48, 1) != chosen
    assert class_counts(choose_images([file], None, 0)) == {"normal": 30, "anomalous": 30}
    decode = ImageReader()
    assert all(int(np.asarray(decode(one))[0, 0, 0]) == int(one.id.split()[1]) == one.row for one in chosen)


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"hold 70 normal and 0 anomalous.*at least {LEAST}"):
        choose_images([parquet(tmp_path / "one.parquet", 70, 0)], None, 0)
    with pytest.raises(UserError, match="--images 40 takes 20 of each"):
        choose_images([parquet(tmp_path / "few.parquet")], 40, 0)
    with pytest.raises(UserError, match="has a column mask"):
        choose_images([parquet(tmp_path / "mask.parquet", mask=b"1")], None, 0)
    with pytest.raises(UserError, match="row 0: ground_truth"):
        choose_images([parquet(tmp_path / "label.parquet", reward_model={"ground_truth": "maybe"})], None, 0)
    (tmp_path / "no.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="cannot read"):
        choose_images([tmp_path / "no.parquet"], None, 0)
