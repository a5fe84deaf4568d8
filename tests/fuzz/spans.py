"""Coverage-guided fuzzing of the parser and the text rewards, with atheris, which is no dependency of this package.

    pip install --target /tmp/atheris atheris==3.0.0
    PYTHONPATH=/tmp/atheris python tests/fuzz/spans.py -runs=200000 -max_len=400

Any byte sequence becomes a list of token pieces. Checked: nothing raises, the answer and the reasoning lie in the text
and not in each other's place, spans and tokens agree, and no text earns more than its format allows. Stops at the first
failure with the input; exit code 0 after ``-runs``.
"""

import sys

import atheris

with atheris.instrument_imports(include=["realad_verl", "reward_fns"]):
    from realad_verl.method.spans import answer_token, parse_response, reasoning_tokens, word_tokens
    from reward_fns.compose import compute_score

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
PARTS = (*TAGS, "yes", "no", " ", "\n", "defect", "<", ">", "think", "</")


def pieces_from(data: bytes) -> list[str]:
    """Bytes below len(PARTS) stand for a part, all others for text."""
    provider = atheris.FuzzedDataProvider(data)
    pieces = []
    while provider.remaining_bytes():
        choice = provider.ConsumeIntInRange(0, 2 * len(PARTS))
        pieces.append(PARTS[choice] if choice < len(PARTS) else provider.ConsumeUnicode(4))
    return pieces


def check(data: bytes) -> None:
    pieces = pieces_from(data)
    text = "".join(pieces)
    parsed = parse_response(text)
    assert parsed.well_formed == (parsed.problem is None)
    if parsed.reasoning_span is not None:
        assert text[slice(*parsed.reasoning_span)] == parsed.reasoning and parsed.reasoning.strip() == parsed.reasoning
    if parsed.answer_span is not None:
        assert text[slice(*parsed.answer_span)].lower() == parsed.answer
        if parsed.reasoning_span is not None:
            (a, b), (c, d) = parsed.answer_span, parsed.reasoning_span
            assert a >= d or b <= c, "an answer inside the reasoning"
    if parsed.well_formed:
        assert all(text.count(tag) == 1 for tag in TAGS) and parsed.answer and parsed.reasoning
    tokens, answer = reasoning_tokens(pieces), answer_token(pieces)
    assert bool(tokens) == (parsed.reasoning is not None) and (answer is None) == (parsed.answer is None)
    assert word_tokens(pieces, ("defect",)) == sorted(set(word_tokens(pieces, ("defect",))))
    for truth in ("yes", "no"):
        score = compute_score("realad/x", text, truth)
        assert score["format_reward"] == float(parsed.well_formed)
        assert score["accuracy_reward"] == float(parsed.answer == truth)
        assert score["score"] == score["format_reward"] + score["accuracy_reward"]


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
