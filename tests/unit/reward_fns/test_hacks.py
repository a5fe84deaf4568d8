"""Reward hacks: none earns more than an honest answer. Rewards come from the real parser and the real evidence."""

import pytest
import torch

from realad_verl.data.prompts import prompt_text
from realad_verl.method.config import ConsistencyConfig, MethodConfig
from realad_verl.method.evidence import compute_evidence
from realad_verl.method.spans import parse_response, reasoning_tokens
from reward_fns.compose import compute_score
from reward_fns.consistency import consistency_score

GRID, P = (15, 15), 225
HONEST = "a dark scratch runs along the upper rim of the part"


def pieces_of(text):
    """Words with their leading space, as tokens."""
    return [word if i == 0 else f" {word}" for i, word in enumerate(text.split(" "))]


def total_reward(text, label, focused=True, cfg=None):
    """R_fmt + R_acc + R_cons, with attention made for each reasoning token of this very text."""
    cfg = cfg or MethodConfig()
    tokens = reasoning_tokens(pieces_of(text), cfg.spans)
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(len(tokens), P, generator=generator) * 1e-3
    if focused:  # every token looks at the same 4 x 4 cells, the most favourable case for an anomalous label
        patch = torch.zeros(GRID)
        patch[2:6, 3:7] = torch.arange(16).reshape(4, 4) + 10
        rows = rows + patch.reshape(-1)
    found = compute_evidence(rows, torch.rand(len(tokens), generator=generator), GRID, cfg)
    score = compute_score("realad/x", text, label)
    parsed = parse_response(text, cfg.spans)
    accurate = score["accuracy_reward"] == 1.0
    return score["score"] + consistency_score(
        found.jaccard, label, parsed.well_formed, cfg.consistency, accurate=accurate
    )


def respond(reasoning, answer):
    return f"<think> {reasoning} </think> <answer> {answer} </answer>"


def test_honest_answers_earn_everything():
    assert total_reward(respond(HONEST, "yes"), 1, focused=True) == 3.0
    assert total_reward(respond(HONEST, "no"), 0, focused=False) == 3.0


HACKS = {
    "empty reasoning": "<think> </think> <answer> yes </answer>",
    "no reasoning": "<answer> yes </answer>",
    "one word": respond("defect", "yes"),
    "answer in think": f"<think> {HONEST} <answer> yes </answer> </think>",
    "answer in think and after": f"<think> {HONEST} <answer> yes </answer> </think> <answer> yes </answer>",
    "two answers": f"{respond(HONEST, 'yes')} <answer> no </answer>",
    "both in one": respond(HONEST, "yes no"),
    "prompt copied": respond(prompt_text(), "yes"),
    "unclosed": f"<think> {HONEST} <answer> yes </answer>",
    "words after": respond(HONEST, "yes") + " yes yes",
}


@pytest.mark.parametrize("focused", [True, False])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("name", HACKS)
def test_a_hack_earns_strictly_less(name, label, focused):
    honest = total_reward(respond(HONEST, "yes" if label else "no"), label, focused=bool(label))
    assert total_reward(HACKS[name], label, focused) < honest


@pytest.mark.parametrize("reasoning", ["defect " * 40, "anomaly defect abnormal " * 20, "the " * 60])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("focused", [True, False])
def test_repetition_earns_no_more(reasoning, label, focused):
    honest = total_reward(respond(HONEST, "yes" if label else "no"), label, focused=bool(label))
    for answer in ("yes", "no"):
        assert total_reward(respond(reasoning.strip(), answer), label, focused) <= honest


@pytest.mark.parametrize("answer", ["yes", "no"])
@pytest.mark.parametrize("focused", [True, False])
def test_one_answer_for_all_images_earns_less(answer, focused):
    honest = total_reward(respond(HONEST, "yes"), 1, True) + total_reward(respond(HONEST, "no"), 0, False)
    always = sum(total_reward(respond(HONEST, answer), label, focused) for label in (0, 1))
    assert always <= honest - 2  # one answer is wrong, and one attention pattern cannot please both labels


@pytest.mark.parametrize("name", HACKS)
@pytest.mark.parametrize("gate", ["format", "accuracy"])
def test_consistency_needs_a_valid_format(name, gate):
    well_formed = parse_response(HACKS[name]).well_formed
    score = consistency_score(1.0, 1, well_formed, ConsistencyConfig(gate=gate), accurate=True)
    assert score == float(name == "one word")  # the only one with a valid format; it has too few tokens for a Jaccard


def test_flat_attention_is_no_agreement():
    """A policy whose attention is constant, or one cell, must not count as looking at the same place."""
    flat = compute_evidence(torch.full((20, P), 1 / P), torch.rand(20), GRID)
    assert flat.jaccard is None and consistency_score(flat.jaccard, 1, True) == 0.0
    spikes = torch.eye(P)[:20]
    assert compute_evidence(spikes, torch.rand(20), GRID).jaccard == 0.0
