"""R_fmt: exactly one think block, then exactly one answer block."""

from realad_verl.method.config import SpanConfig
from realad_verl.method.spans import parse_response


def format_reward(response: str, spans: SpanConfig = SpanConfig()) -> float:
    """1.0 for a well-formed response, else 0.0; what that means is defined in ``realad_verl.method.spans``.

    >>> format_reward("<think>A scratch on the rim.</think><answer> yes </answer>")
    1.0
    >>> format_reward("<think>A scratch on the rim.</think> It is <answer>yes</answer>")
    0.0
    >>> format_reward("yes")
    0.0
    """
    return float(parse_response(response, spans).well_formed)
