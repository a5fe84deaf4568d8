"""R_acc: the answer equals the label."""

from typing import Any

from realad_verl.method.config import SpanConfig
from realad_verl.method.labels import read_label
from realad_verl.method.spans import parse_response


def accuracy_reward(response: str, ground_truth: Any, spans: SpanConfig = SpanConfig()) -> float:
    """1.0 where the response has one answer outside its reasoning and it equals the ground truth, else 0.0.

    The format need not be valid otherwise: that is R_fmt's business. ``ground_truth`` is read by
    ``realad_verl.method.labels.read_label``; one that is no label earns nothing.

    >>> accuracy_reward("<think>A scratch.</think><answer> Yes </answer>", "yes")
    1.0
    >>> accuracy_reward("<think>A scratch.</think><answer>yes</answer>", 0)
    0.0
    >>> accuracy_reward("<think><answer>yes</answer></think>", "yes")
    0.0
    """
    label = read_label(ground_truth)
    return float(label is not None and read_label(parse_response(response, spans).answer) == label)
