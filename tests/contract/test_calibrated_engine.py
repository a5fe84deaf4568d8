"""Chosen heads and a word baseline in verl's engine: equal to eager attention of the same heads and baseline."""

import json

import numpy as np
import pytest
import torch
from test_engine import _reasoning_rows, _word_columns, run_ranks
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from realad_verl.backbones.pieces import token_pieces
from realad_verl.calibration import write_baselines
from realad_verl.method.baseline import Baseline
from realad_verl.method.config import MethodConfig
from realad_verl.method.evidence import compute_evidence
from realad_verl.tiny import tiny_model_dir
from realad_verl.verl_ext.train import wire

HEADS = [[0, 1], [1, 0], [2, 3]]
SETTINGS = {
    "readout": {"heads": HEADS},
    "scoring": {"select": "image", "concentration": "contrast", "tau_i": 0.0, "baseline": "word"},
    "map": {"smooth": 1.0},
    "consistency": {"t": 5, "percentile": 95.0, "delta_1": 0.2, "delta_2": 0.2},
}
GRID = (12, 12)


def made_calibration(folder) -> tuple[Baseline, MethodConfig]:
    """A folder with baselines for half of the vocabulary, none of them flat."""
    random = torch.Generator().manual_seed(0)
    words = torch.rand(200, 144, generator=random) + 0.2
    normal = torch.rand(144, generator=random) + 0.2
    ids = torch.arange(0, 400, 2)
    baseline = Baseline(GRID, normal / normal.sum(), ids, words / words.sum(1, keepdim=True))
    method = MethodConfig.from_dict(SETTINGS | {"calibration": str(folder)})
    write_baselines(folder, baseline, method, AutoConfig.from_pretrained(tiny_model_dir()))
    return baseline, method


def eager_evidence(sample: dict, baseline: Baseline, method: MethodConfig):
    """Written without the package's planning, read-out and baseline code."""
    folder = str(tiny_model_dir())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    ids, inputs = sample["input_ids"], sample["multi_modal_inputs"]
    with torch.no_grad():
        output = model(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            position_ids=sample["position_ids"][:, None],
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
            output_attentions=True,
        )
    attention = np.mean([output.attentions[layer][0, head].double().numpy() for layer, head in HEADS], axis=0)
    n_prompt = len(sample["prompts"])
    image = (ids[:n_prompt] == model.config.image_token_id).nonzero().flatten().numpy()
    words = _word_columns(token_pieces(tokenizer, ids[:n_prompt].tolist()), method.readout.words)
    reasoning = _reasoning_rows(token_pieces(tokenizer, ids[n_prompt:].tolist()))
    if not reasoning:
        return None
    tokens = [int(ids[n_prompt + r]) for r in reasoning]
    known = {int(word): row.double().numpy() for word, row in zip(baseline.ids_V, baseline.words_VP, strict=True)}
    usual = np.stack([known.get(token, baseline.normal_P.double().numpy()) for token in tokens])
    rows = attention[np.array(reasoning) + n_prompt]
    share = rows[:, image] / rows[:, image].sum(1, keepdims=True)
    relative = share / (usual / usual.sum(1, keepdims=True))
    return compute_evidence(torch.tensor(relative).float(), torch.tensor(rows[:, words].sum(1)).float(), GRID, method)


JOBS = [
    {"lora_rank": 8},
    {"world": 2},
    pytest.param({"world": 2, "packed": True, "ulysses": 2}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("job", JOBS, ids=["lora", "two-ranks", "ulysses"])
def test_calibrated_evidence_equals_eager(tmp_path, job):
    baseline, method = made_calibration(tmp_path)
    results = run_ranks(tmp_path, method=json.loads(json.dumps(method.to_dict())), **job)
    seen = 0
    for result in results:
        for i, sample in enumerate(result["samples"]):
            want = eager_evidence(sample, baseline, method)
            (got,) = wire.unpack_summaries(result["on"][wire.SUMMARY][i][None])
            if want is None:
                assert got.problem == "no_reasoning"
                continue
            seen += 1
            detail = wire.unpack_detail(*(result["on"][name][i] for name in wire.DETAIL))
            assert got.jaccard == pytest.approx(want.jaccard, abs=1e-5) and got.n_kept == want.n_kept
            # A map over a baseline is a ratio of about 1: <= 1e-5 of that.
            torch.testing.assert_close(detail.map_HW.flatten(), want.anomaly_map_P, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(detail.tokens[2], want.s_i_R, atol=1e-4, rtol=1e-5)
    assert seen >= 2
