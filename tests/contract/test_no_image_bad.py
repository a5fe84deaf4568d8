"""A micro-batch without any image goes through verl's own input embedding of Qwen2.5-VL."""

import torch
from transformers import AutoModelForImageTextToText

from realad_verl.tiny import tiny_model_dir


def test_a_micro_batch_without_an_image(monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    import verl  # noqa: F401  (loads the plugin)
    from verl.models.transformers import qwen2_vl

    model = AutoModelForImageTextToText.from_pretrained(str(tiny_model_dir()), dtype=torch.float32).model
    ids = torch.arange(1, 9)[None]
    embeds, _ = qwen2_vl._get_input_embeds(model, ids, None)
    assert torch.equal(embeds, model.get_input_embeddings()(ids))
