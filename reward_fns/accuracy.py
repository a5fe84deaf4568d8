"""R_acc: the answer equals the label."""

from typing import Any

from realad_verl.method.config import SpanConfig
from realad_verl.method.spans import parse_response


def accuracy_reward(response: str, ground_truth: Any, spans: SpanConfig = SpanConfig()) -> float:
    """1.0 where the response has one answer outside its reasoning and it equals the ground truth, else 0.0.

    The format need not be valid otherwise: that is R_fmt's business. ``ground_truth`` is read by
    ``parse_ground_truth``; one that means neither yes nor no earns nothing.

    >>> accuracy_reward("<think>A scratch.</think><answer> Yes </answer>", "yes")
    1.0
    >>> accuracy_reward("<think>A scratch.</think><answer>yes</answer>", "no")
    0.0
    >>> accuracy_reward("<think><answer>yes</answer></think>", "yes")
    0.0
    """
    answer = parse_response(response, spans).answer
    return float(answer is not None and answer == parse_ground_truth(ground_truth))


def parse_ground_truth(ground_truth: Any) -> str | None:
    """ "yes" or "no" from "yes"/"no" in any case, 1/0, "1"/"0", or a bool; None for everything else.

    >>> [parse_ground_truth(value) for value in ("Yes", " no", 1, False, "0", "maybe", None, 0.5)]
    ['yes', 'no', 'yes', 'no', 'no', None, None, None]
    """
    if ground_truth is None:
        return None
    word = str(ground_truth).strip().lower()
    if word in ("yes", "1", "true"):
        return "yes"
    return "no" if word in ("no", "0", "false") else None
