"""verl's engine with the read-out: evidence equals eager attention of the same weights, and nothing else changes."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from realad_verl.backbones.pieces import token_pieces
from realad_verl.localize import Localizer
from realad_verl.method.config import MethodConfig
from realad_verl.method.consistency import consistency_score
from realad_verl.method.evidence import compute_evidence
from realad_verl.method.spans import parse_response
from realad_verl.tiny import tiny_model_dir
from realad_verl.verl_ext.train import wire

HERE = Path(__file__).parent


def _free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def run_ranks(tmp_path: Path, world: int = 1, limit: float = 240, **job) -> list[dict]:
    """Run the engine on ``world`` ranks; returns each rank's result."""
    job = {"model": str(tiny_model_dir()), "n": 4, "out": str(tmp_path / "out")} | job
    (tmp_path / "job.json").write_text(json.dumps(job))
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    shared |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo", "VERL_PLATFORM": "cpu"}
    command = [sys.executable, str(HERE / "engine_rank.py"), str(tmp_path / "job.json")]
    ranks = [
        subprocess.Popen(command, env=os.environ | shared | {"RANK": str(r), "LOCAL_RANK": "0"}, cwd=HERE)
        for r in range(world)
    ]
    try:
        codes = [process.wait(timeout=limit) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert codes == [0] * world
    return [torch.load(f"{job['out']}.{r}", weights_only=False) for r in range(world)]


def eager_evidence(sample: dict, method: MethodConfig):
    """The evidence of one sample from plain eager attention, written without the package's own planning code."""
    model_dir = str(tiny_model_dir())
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForImageTextToText.from_pretrained(
        model_dir, attn_implementation="eager", dtype=torch.float32
    ).eval()
    ids = sample["input_ids"]
    with torch.no_grad():
        output = model(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            position_ids=sample["position_ids"][:, None],
            pixel_values=sample["multi_modal_inputs"]["pixel_values"],
            image_grid_thw=sample["multi_modal_inputs"]["image_grid_thw"],
            output_attentions=True,
        )
    attention_LL = torch.stack([layer[0].mean(0) for layer in output.attentions]).mean(0)
    n_prompt = len(sample["prompts"])
    image = (ids[:n_prompt] == model.config.image_token_id).nonzero().flatten()
    words = _word_columns(token_pieces(tokenizer, ids[:n_prompt].tolist()), method.readout.words)
    reasoning = _reasoning_rows(token_pieces(tokenizer, ids[n_prompt:].tolist()))
    if not reasoning:
        return None, None
    rows = attention_LL[torch.tensor(reasoning) + n_prompt]
    _, height, width = sample["multi_modal_inputs"]["image_grid_thw"][0].tolist()
    merge = model.config.vision_config.spatial_merge_size
    grid = (height // merge, width // merge)
    return compute_evidence(rows[:, image], rows[:, words].sum(1), grid, method), output.logits[0]


def _word_columns(pieces: list[str], words) -> list[int]:
    text, starts = "".join(pieces), []
    position = 0
    for piece in pieces:
        starts.append(position)
        position += len(piece)
    spans = [m.span() for w in words for m in re.finditer(rf"\b{w}\b", text, re.IGNORECASE)]
    ends = [s + len(p) for s, p in zip(starts, pieces, strict=True)]
    return [i for i, (s, e) in enumerate(zip(starts, ends, strict=True)) if any(s < b and e > a for a, b in spans)]


def _reasoning_rows(pieces: list[str]) -> list[int]:
    text = "".join(pieces)
    match = re.search(r"<think>(.*?)</think>", text, re.DOTALL)
    if match is None:
        return []
    start = match.start(1) + len(match[1]) - len(match[1].lstrip())
    end = match.end(1) - len(match[1]) + len(match[1].rstrip())
    rows, position = [], 0
    for i, piece in enumerate(pieces):
        if position < end and position + len(piece) > start:
            rows.append(i)
        position += len(piece)
    return rows


def check_against_eager(results: list[dict], method: MethodConfig, tolerance: float = 1e-5) -> None:
    seen = 0
    for result in results:
        for i, sample in enumerate(result["samples"]):
            want, _ = eager_evidence(sample, method)
            (got,) = wire.unpack_summaries(result["on"][wire.SUMMARY][i][None])
            detail = wire.unpack_detail(*(result["on"][name][i] for name in wire.DETAIL))
            if want is None:
                assert got.problem == "no_reasoning" and got.jaccard is None
                continue
            seen += 1
            assert (got.jaccard is None) == (want.jaccard is None)
            if want.jaccard is not None:
                assert got.jaccard == pytest.approx(want.jaccard, abs=tolerance)
            assert (got.n_kept, got.fallback, got.n_reasoning) == (want.n_kept, want.fallback, want.n_reasoning)
            assert torch.allclose(detail.map_HW.flatten(), want.anomaly_map_P, atol=tolerance)
            assert torch.allclose(detail.tokens[3], want.weights_R, atol=1e-4)
    assert seen >= 2


def check_answers(results: list[dict], method: MethodConfig) -> None:
    """P(yes) where the answer begins, from eager logits and the answer's place in the text; none without an answer."""
    tokenizer, seen = AutoTokenizer.from_pretrained(str(tiny_model_dir())), []
    starts = [
        [tokenizer.encode(space + form)[0] for form in (word, word.title(), word.upper()) for space in ("", " ")]
        for word in ("yes", "no")
    ]
    for result in results:
        answers = wire.unpack_answers(torch.stack(result["on"][wire.ANSWER]))
        for sample, answer in zip(result["samples"], answers, strict=True):
            text = tokenizer.decode(sample["responses"], skip_special_tokens=True)
            assert answer.well_formed == parse_response(text, method.spans).well_formed
            _, logits_LV = eager_evidence(sample, method)
            if logits_LV is None or "<answer>" not in text:
                assert answer.share is None or logits_LV is None
                continue
            ends, position = [], 0
            for piece in token_pieces(tokenizer, sample["responses"].tolist()):
                position += len(piece)
                ends.append(position)
            begins = text.index("<answer>") + len("<answer>")
            at = next(i for i, end in enumerate(ends) if text[begins:end].strip())
            yes, no = (logits_LV[len(sample["prompts"]) + at - 1, ids].double().logsumexp(0) for ids in starts)
            assert answer.share == pytest.approx(torch.sigmoid(yes - no).item(), abs=1e-5)
            seen.append(answer.share)
    assert len({round(share, 3) for share in seen}) >= 2, "every sample has the same score"


def check_verdicts(results: list[dict], method: MethodConfig, n: int) -> None:
    """What the worker made of label, answer and Jaccard, against the method's own functions on the decoded text."""
    tokenizer, seen = AutoTokenizer.from_pretrained(str(tiny_model_dir())), []
    for result in results:
        fields = [torch.stack(result["on"][name]) for name in (wire.SUMMARY, wire.VERDICT)]
        notes = [wire.unpack_notes(vector[None])[0] for vector in result["on"][wire.NOTES]]
        rows = zip(result["samples"], wire.unpack_summaries(fields[0]), wire.unpack_verdicts(fields[1]), strict=True)
        for (sample, summary, verdict), note in zip(rows, notes, strict=True):
            label = {"yes": 1, "no": 0}[sample["reward_model"]["ground_truth"]]
            parsed = parse_response(tokenizer.decode(sample["responses"]), method.spans)
            earned = consistency_score(summary.jaccard, label, parsed.well_formed, method.consistency)
            right = parsed.answer == ("no", "yes")[label]
            assert verdict == wire.Verdict(label, right, earned)
            i = int(2 * sample["extra_fields"]["reward_extra_info"]["format_reward"])
            assert note == {"format_reward": i / 2, "realad_cut_tokens": float(i > 0), "realad_replaced": float(i == 1)}
            seen.append(verdict)
    assert len(seen) == n and {verdict.label for verdict in seen} == {0, 1}
    assert {verdict.right for verdict in seen} == {True, False}


def check_log_probs_bitwise_equal(results: list[dict]) -> None:
    for result in results:
        for name in ("log_probs", "entropy"):
            for off, on in zip(result["off"][name], result["on"][name], strict=True):
                assert torch.equal(off, on)
        assert wire.SUMMARY not in result["off"]


METHOD = MethodConfig()


def slow(job: dict):
    """A layout that only the long run of the tests covers."""
    return pytest.param(job, marks=pytest.mark.slow)


PADDED = [{}, {"equal": True}, slow({"micro": 1}), slow({"dynamic": True}), {"lora_rank": 8}]


@pytest.mark.parametrize("job", PADDED, ids=str)
def test_padded_one_rank(tmp_path, job):
    results = run_ranks(tmp_path, **job)
    check_log_probs_bitwise_equal(results)
    check_against_eager(results, METHOD)
    check_answers(results, METHOD)
    check_verdicts(results, METHOD, len(results[0]["samples"]))


def test_padded_two_ranks(tmp_path):
    results = run_ranks(tmp_path, world=2)
    check_log_probs_bitwise_equal(results)
    check_against_eager(results, METHOD)
    check_answers(results, METHOD)


@pytest.mark.parametrize("job", [{"micro": 2}, slow({"micro": 1}), slow({"equal": True})], ids=str)
def test_packed_one_rank(tmp_path, job):
    results = run_ranks(tmp_path, packed=True, **job)
    check_log_probs_bitwise_equal(results)
    check_against_eager(results, METHOD)
    check_answers(results, METHOD)


def test_packed_ulysses_two_ranks(tmp_path):
    results = run_ranks(tmp_path, world=2, packed=True, ulysses=2)
    check_log_probs_bitwise_equal(results)
    check_against_eager(results, METHOD)
    check_answers(results, METHOD)
    # Both ranks hold the whole batch and the same evidence.
    one, two = (torch.stack(result["on"][wire.SUMMARY])[:, :5] for result in results)
    assert torch.equal(one.nan_to_num(-1), two.nan_to_num(-1))


BF16 = [
    {"world": 1},
    {"world": 1, "packed": True},
    {"world": 2, "packed": True, "ulysses": 2},
]


@pytest.mark.parametrize("job", BF16, ids=["padded", "packed", "ulysses"])
def test_bf16_training_reads_the_rows_of_its_own_q_and_k_exactly(tmp_path, job):
    """verl runs a bf16 model under autocast, which must not reach into the read-out; nor may TF32."""
    results = run_ranks(tmp_path, param_dtype="bf16", exact=True, **job)
    check_log_probs_bitwise_equal(results)
    config, seen = AutoConfig.from_pretrained(tiny_model_dir()), 0
    for result in results:
        rows, summaries = iter(zip(result["rows"], result["exact_rows"], strict=True)), result["on"][wire.SUMMARY]
        for i, (sample, vector) in enumerate(zip(result["samples"], summaries, strict=True)):
            (got,) = wire.unpack_summaries(vector[None])
            detail = wire.unpack_detail(*(result["on"][name][i] for name in wire.DETAIL))
            if got.problem == "no_reasoning":
                continue
            have, want = next(rows)
            assert want.dtype == torch.float64 and want.max() > 0.02
            assert (have - want).abs().max() <= 3e-5
            n_image, grid = int((sample["input_ids"] == config.image_token_id).sum()), tuple(detail.map_HW.shape)
            evidence = compute_evidence(want[:, :n_image].float(), want[:, n_image:].sum(1).float(), grid, METHOD)
            assert got.jaccard == pytest.approx(evidence.jaccard, abs=1e-6)
            assert torch.equal(detail.tokens[4].bool(), evidence.kept_R)
            assert torch.allclose(detail.map_HW.flatten(), evidence.anomaly_map_P, atol=3e-5)
            seen += got.jaccard is not None
        assert next(rows, None) is None
    assert seen >= 2


def test_localizer_in_bf16_gives_the_map_of_the_bf16_engine(tmp_path):
    (result,) = run_ranks(tmp_path, param_dtype="bf16")
    localizer = Localizer.from_pretrained(tiny_model_dir(), dtype=torch.bfloat16)
    # FSDP rounds the inputs of each block to bf16, of the vision tower's the rotary tables, which are fp32 otherwise.
    for block in localizer.model.model.visual.blocks:
        block.register_forward_pre_hook(_inputs_in_bf16, with_kwargs=True)
    found = []
    for first in (0, 2):  # the engine's micro-batches, since padding changes the order of sums
        some = result["samples"][first : first + 2]
        images = [Image.fromarray(sample["image"]) for sample in some]
        found += localizer.explain(images, [sample["responses"].tolist() for sample in some])
    for i, localization in enumerate(found):
        (summary,) = wire.unpack_summaries(result["on"][wire.SUMMARY][i][None])
        detail = wire.unpack_detail(*(result["on"][name][i] for name in wire.DETAIL))
        assert (localization.grid_map is None) == (detail.map_HW is None) == (summary.problem == "no_reasoning")
        assert localization.jaccard == (summary.jaccard and pytest.approx(summary.jaccard, abs=1e-6))
        if detail.map_HW is not None:
            assert torch.equal(torch.tensor([token.kept for token in localization.tokens]), detail.tokens[4].bool())
            assert np.abs(localization.grid_map - detail.map_HW.numpy()).max() <= 1e-6
    assert sum(localization.jaccard is not None for localization in found) >= 2


def _inputs_in_bf16(_, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    def cast(value):
        if isinstance(value, tuple):
            return tuple(map(cast, value))
        return value.bfloat16() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return cast(args), {name: cast(value) for name, value in kwargs.items()}


def test_update_equals_verls_own_engine(tmp_path):
    """The same batch through verl's engine without, and ours with the read-out: the same weights, bitwise."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "verl").mkdir()
    (ours,) = run_ranks(tmp_path / "ours", update=True)
    (verls,) = run_ranks(tmp_path / "verl", update=True, engine="language_model", evidence=False)
    assert ours["weights"].keys() == verls["weights"].keys()
    moved = 0
    before = AutoModelForImageTextToText.from_pretrained(str(tiny_model_dir()), dtype=torch.float32).state_dict()
    for name, value in ours["weights"].items():
        assert torch.equal(value, verls["weights"][name]), name
        moved += name in before and not torch.equal(value, before[name])
    assert moved > 10


# How the weights, or the tokens, of one model may lie on several ranks.
LAYOUTS = {
    "two nodes of two ranks, sharded within a node": (4, {"fsdp_size": 2}),
    "sequences over two ranks": (2, {"packed": True, "ulysses": 2}),
}


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_equals_one_rank(tmp_path, name):
    """The same rewards, and after one update the same weights."""
    world, job = LAYOUTS[name]
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    (one,) = run_ranks(tmp_path / "one", limit=900, update=True, micro=1, packed=job.get("packed", False))
    many = run_ranks(tmp_path / "many", world=world, limit=1200, update=True, micro=1, **job)
    by_group = {result["dp_rank"]: result for result in many}
    judged = [vector for rank in sorted(by_group) for vector in by_group[rank]["on"][wire.VERDICT]]
    assert len(judged) == len(one["samples"]) >= 4
    for got, want in zip(judged, one["on"][wire.VERDICT], strict=True):
        assert torch.equal(got.nan_to_num(-1), want.nan_to_num(-1))
    # AdamW's first step moves each weight by its gradient's sign: where that is next to nothing, rounding decides.
    moved = {n: (value - many[0]["weights"][n]).abs() > 1e-5 for n, value in one["weights"].items()}
    share = sum(int(m.sum()) for m in moved.values()) / sum(m.numel() for m in moved.values())
    print(f"{name}: {share:.2e} of the weights differ by more than 1e-5")
    assert share < 1e-3


def test_adapters_are_those_of_the_seed_whatever_was_drawn_before(tmp_path):
    """So a LoRA run can be repeated; another actor.fsdp_config.seed gives another one."""
    after = []
    for name, drawn, seed in (("one", 0, 42), ("two", 1, 42), ("other", 0, 43)):
        (tmp_path / name).mkdir()
        (result,) = run_ranks(
            tmp_path / name, lora_rank=4, merge=True, evidence=False, update=True, drawn=drawn, seed=seed
        )
        after.append({key: value for key, value in result["weights"].items() if "lora_" in key})
    one, two, other = after
    assert len(one) > 10 and all(torch.equal(value, two[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())
