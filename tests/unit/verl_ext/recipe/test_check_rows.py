"""`realad check` opens the data: rows that verl would only refuse after its start-up, or never."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from realad_verl.method.config import SpanConfig
from realad_verl.tiny import tiny_model_dir
from realad_verl.verl_ext.recipe.check import check_config
from realad_verl.verl_ext.recipe.compose import compose_recipe
from realad_verl.verl_ext.recipe.data.model_text import template_opens
from realad_verl.verl_ext.recipe.problem import Problem, Setup


def png(side: int = 56, dtype: Any = np.uint8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side), 90, dtype)).save(buffer, "PNG")
    return buffer.getvalue()


def row(i: int, image: Any = None, content: Any = "<image>Any defects?", **other: Any) -> dict[str, Any]:
    return {
        "data_source": "mine",
        "prompt": [{"role": "user", "content": content}],
        "images": [{"bytes": png()} if image is None else image],
        "ability": "x",
        "reward_model": {"style": "rule", "ground_truth": "yes" if i % 2 else "no"},
        "extra_info": {"index": i},
    } | other


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def found(train: Path | str, val: Path, *overrides: str) -> list[Problem]:
    config = compose_recipe("local/cgro_tiny_cpu", [f"data.train_files={train}", f"data.val_files={val}", *overrides])
    names = ("data.", "realad.method.spans", "reward_model")
    return [p for p in check_config(config, verl=False) if p.key.startswith(names)]


@pytest.fixture()
def good(tmp_path):
    return write(tmp_path / "good.parquet", [row(i) for i in range(16)])


def test_good_rows_are_taken(good, tmp_path):
    assert found(good, good) == []
    (tmp_path / "a.png").write_bytes(png())
    for image in (str(tmp_path / "a.png"), {"image": f"file://{tmp_path}/a.png"}):
        assert found(write(tmp_path / "p.parquet", [row(i, image) for i in range(16)]), good) == []


def test_a_batch_of_more_rows_than_there_are_and_no_row_at_all(good, tmp_path):
    few = write(tmp_path / "few.parquet", [row(i) for i in range(3)])
    (problem,) = found(few, good, "data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4")
    assert problem.key == "data.train_batch_size" and problem.value == 4 and "3" in problem.allowed + problem.fix
    none = tmp_path / "none.parquet"
    pq.write_table(pq.read_table(good).slice(0, 0), none)
    (problem,) = found(good, none)
    assert problem.key == "data.val_files" and problem.allowed == "holds no row"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"image": {"bytes": b"no image"}}, "not an image of a known format"),
        ({"image": {"bytes": None, "path": "x.png"}}, "must be {'bytes'"),
        ({"image": "nowhere.png"}, "no such file"),
        ({"image": {"bytes": png(dtype=np.uint16)}}, "more than 8 bits"),
        ({"content": "Any defects?"}, "0 <image> and its row 1 images"),
        ({"content": [{"type": "text", "text": "x"}]}, "must be text with <image>"),
        ({"prompt": '[{"role": "user"}]'}, "no list of messages"),
        ({"images": [{"bytes": png()}] * 2}, "1 <image> and its row 2 images"),
    ],
)
def test_rows_that_cannot_be_used(good, tmp_path, wrong, said):
    bad = write(tmp_path / "bad.parquet", [row(i, **wrong) for i in range(16)])
    (problem,) = [p for p in found(bad, good) if p.level == "error"]
    assert problem.key == "data.train_files" and "bad.parquet, row 0" in problem.value and said in problem.allowed


def test_a_later_row_group_is_looked_at_too(good, tmp_path):
    rows = [row(i) for i in range(15)] + [row(15, {"bytes": b""})]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "bad.parquet", row_group_size=3)
    (problem,) = found(tmp_path / "bad.parquet", good)
    assert "row 15" in problem.value and "empty" in problem.allowed


def test_a_prompt_of_too_many_tokens(good, tmp_path):
    """The tokens are those of the model's own processor, for the image of that row."""
    large = write(tmp_path / "large.parquet", [row(i, {"bytes": png(168)}) for i in range(16)])
    problems = [p for p in found(large, good, "data.max_prompt_length=80") if "large.parquet" in p.allowed]
    assert problems and "an image of 168 x 168" in problems[0].allowed and problems[0].key == "data.max_prompt_length"


def test_files_that_do_not_fit_each_other(good, tmp_path):
    other = write(tmp_path / "other.parquet", [row(i, extra_info={"index": str(i)}) for i in range(16)])
    (problem,) = found(f"[{good},{other}]", good)
    assert problem.value == str(other) and "extra_info: struct<index: int64>" in problem.allowed
    assert "struct<index: string>" in problem.allowed


@pytest.fixture()
def thinking(tmp_path):
    """The tiny model with a chat template that ends a prompt with <think>."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir(), model)
    template = model / "chat_template.jinja"
    before = "<|im_start|>assistant\n{% endif %}"
    assert before in template.read_text()
    template.write_text(template.read_text().replace(before, "<|im_start|>assistant\n<think>\n{% endif %}"))
    return model


def test_a_template_that_opens_the_think_block(good, thinking):
    path = f"actor_rollout_ref.model.path={thinking}"
    assert found(good, good, path) == []
    assert found(good, good, path, "realad.method.spans.opened_by_template=true") == []
    (problem,) = found(good, good, path, "realad.method.spans.opened_by_template=false")
    assert problem.level == "error" and "ends a prompt with '<think>'" in problem.allowed
    (problem,) = found(good, good, "realad.method.spans.opened_by_template=true")
    assert "does not end a prompt" in problem.allowed
    setup = Setup(compose_recipe("local/cgro_tiny_cpu", [path]))
    assert template_opens(setup, SpanConfig()) is True
