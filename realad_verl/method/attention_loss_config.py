"""Settings of the consensus loss on the attention [ours]; the paper has no such loss. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from realad_verl.errors import bad_value, unknown_key

WHERE = "realad.attention_loss"


@dataclass(frozen=True)
class AttentionLossConfig:
    """The consensus loss [ours, all of it]; ``weight`` 0 is off, and nothing of it runs then.

    weight: factor on the loss beside verl's policy loss.
    power: the averaged map is raised to it and normalised: above 1 sharpens the target.
    baseline: what a row is divided by before the map is made: "word", the mean row of the same token id over normal
        images; "normal", one mean row for all tokens; "none".
    baseline_images: whose rows make the baseline: of "normal" images, or of "all" (which needs no label).
    decay: factor on the baseline's sums before a step's rows are added.
    min_count: a token id with fewer rows (after decay) takes the mean row of all tokens.
    smooth: standard deviation of the Gaussian over a map, in cells; 0 does not smooth.
    responses: whose maps make an image's target: of the "right" answers (of all, where none is right), or of "all".
    normal: what attention on a normal image is pulled to: "uniform", "consensus" (as anomalous images), or "none".
    """

    weight: float = 0.0
    power: float = 3.0
    baseline: Literal["word", "normal", "none"] = "word"
    baseline_images: Literal["normal", "all"] = "normal"
    decay: float = 0.8
    min_count: float = 30.0
    smooth: float = 1.0
    responses: Literal["right", "all"] = "right"
    normal: Literal["uniform", "consensus", "none"] = "uniform"

    def __post_init__(self) -> None:
        number("weight", self.weight, 0.0, math.inf, "a finite number >= 0")
        number("power", self.power, 0.0, math.inf, "a finite number > 0", low_open=True)
        number("decay", self.decay, 0.0, 1.0, "0 <= value <= 1", high_closed=True)
        number("min_count", self.min_count, 0.0, math.inf, "a finite number >= 0")
        number("smooth", self.smooth, 0.0, math.inf, "a finite number of cells >= 0")
        choices = {
            "baseline": ("word", "normal", "none"),
            "baseline_images": ("normal", "all"),
            "responses": ("right", "all"),
            "normal": ("uniform", "consensus", "none"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise bad_value(f"{WHERE}.{name}", getattr(self, name), ", ".join(allowed))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any] | None) -> Self:
        """Build from a mapping (YAML); what is left out keeps its default. UserError for an unknown key."""
        names = [f.name for f in fields(cls)]
        settings = {} if settings is None else settings
        if not isinstance(settings, Mapping):
            raise bad_value(WHERE, settings, "a mapping of setting names to values")
        for key in settings:
            if key not in names:
                raise unknown_key(str(key), names, WHERE)
        return cls(**settings)


def number(
    name: str, value: Any, low: float, high: float, allowed: str, low_open: bool = False, high_closed: bool = False
) -> None:
    """UserError unless ``low <= value < high`` (or as the flags say)."""
    fine = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not fine or (low_open and value == low) or (value == high and not high_closed):
        raise bad_value(f"{WHERE}.{name}", value, allowed)
