"""verl's ``reward.custom_reward_function``: R = w_fmt R_fmt + w_acc R_acc, the parts logged beside it.

In verl's config::

    reward:
      custom_reward_function:
        path: pkg://reward_fns.compose
        name: compute_score
        reward_kwargs: {w_fmt: 1.0, w_acc: 1.0}

The consistency reward is added by the CGRO trainer, where the attention is.
"""

from collections.abc import Mapping
from typing import Any

from realad_verl.errors import unknown_key
from realad_verl.method.config import SpanConfig
from realad_verl.method.labels import read_label
from reward_fns.accuracy import accuracy_reward
from reward_fns.format import format_reward

# What verl's reward managers pass by themselves where a reward model is served.
PASSED_BY_VERL = ("reward_router_address", "reward_model_tokenizer")


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    w_fmt: float = 1.0,
    w_acc: float = 1.0,
    spans: Mapping[str, Any] | None = None,
    **others: Any,
) -> dict[str, float]:
    """Score one response; the same keys, all floats, for every sample, as verl wants them.

    A ground truth that ``read_label`` does not know scores 0 altogether and sets ``bad_ground_truth``: one wrong row of
    data neither ends a training step nor teaches anything. ``spans``: settings of ``SpanConfig``,
    such as other tags, or ``opened_by_template: true``.
    Raises UserError for a ``reward_kwargs`` key that does not exist.

    >>> compute_score("realad/x", "<think>A dent.</think><answer>yes</answer>", "yes")["score"]
    2.0
    >>> compute_score("realad/x", "<answer>yes</answer>", "yes")  # doctest: +NORMALIZE_WHITESPACE
    {'score': 1.0, 'format_reward': 0.0, 'accuracy_reward': 1.0, 'bad_ground_truth': 0.0}
    >>> compute_score("realad/x", "<think>A dent.</think><answer>yes</answer>", "maybe")["score"]
    0.0
    """
    for key in others:
        if key not in PASSED_BY_VERL:
            raise unknown_key(key, ("w_fmt", "w_acc", "spans"), "reward.custom_reward_function.reward_kwargs")
    tags = SpanConfig(**(spans or {}))
    bad = read_label(ground_truth) is None
    r_fmt = 0.0 if bad else format_reward(solution_str, tags)
    r_acc = 0.0 if bad else accuracy_reward(solution_str, ground_truth, tags)
    return {
        "score": w_fmt * r_fmt + w_acc * r_acc,
        "format_reward": r_fmt,
        "accuracy_reward": r_acc,
        "bad_ground_truth": float(bad),
    }
