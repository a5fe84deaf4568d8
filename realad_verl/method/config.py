"""Every setting of the method, as frozen dataclasses that refuse what they do not understand.

Defaults marked [ours] are not given by the paper (arXiv 2603.27179); they are our choices, each one setting away from
another. Nothing here imports torch, so that command lines and reward workers can read it cheaply.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from realad_verl.errors import UserError, bad_value, unknown_key


@dataclass(frozen=True)
class SpanConfig:
    """The tags that mark reasoning and answer. They are matched exactly: case counts, no inner spaces.

    opened_by_template: the chat template ends a prompt with the opening think tag, so that a response starts inside the
        block; the tag then counts as written by the response. "auto" looks at the prompt (``spans.opened_spans``);
        where nobody has looked it means False.
    """

    think_open: str = "<think>"
    think_close: str = "</think>"
    answer_open: str = "<answer>"
    answer_close: str = "</answer>"
    opened_by_template: Literal["auto"] | bool = "auto"

    def __post_init__(self) -> None:
        if self.opened_by_template not in ("auto", True, False):
            raise bad_value("spans.opened_by_template", self.opened_by_template, "auto, true, false")
        names = ("think_open", "think_close", "answer_open", "answer_close")
        tags = {name: getattr(self, name) for name in names}
        for name, tag in tags.items():
            if not isinstance(tag, str) or not tag.strip():
                raise bad_value(f"spans.{name}", tag, "a text that is not blank")
            for other, other_tag in tags.items():
                if other != name and isinstance(other_tag, str) and tag in other_tag:
                    raise bad_value(f"spans.{name}", tag, f"a text that is no part of spans.{other} = {other_tag!r}")


@dataclass(frozen=True)
class ReadoutConfig:
    """Which attention is read out of the forward pass.

    layers: language layers averaged over, None for all [ours]; negative numbers count from the last layer.
    heads: (layer, head) pairs averaged over, None for all heads of ``layers`` [ours]; leaves no room for ``layers``.
    query: "at" reads the query at a token's own position [ours], "before" the one that predicts the token.
    words: the anomaly words whose prompt tokens make S_T; case does not count, whole words only.
    max_bytes: bound on the read-out's extra memory in a forward pass, in bytes.
    kernel: what computes the rows: "torch", "triton" (fused, CUDA only), or "auto", which is triton on CUDA.
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[tuple[int, int], ...] | None = None
    query: Literal["at", "before"] = "at"
    words: tuple[str, ...] = ("defect", "defects", "anomaly", "anomalies", "abnormal")
    max_bytes: int = 64 << 20
    kernel: Literal["auto", "torch", "triton"] = "auto"

    def __post_init__(self) -> None:
        if self.layers is not None:
            _to_tuple(self, "layers", "readout", "a list of at least one layer number, or null for all layers")
            if not self.layers or not all(_is_int(layer) for layer in self.layers):
                raise bad_value("readout.layers", self.layers, "at least one whole number, or null for all layers")
            if len(set(self.layers)) < len(self.layers):
                raise bad_value("readout.layers", self.layers, "each layer once")
        if self.heads is not None:
            self._check_heads()
        _check_choice("readout.query", self.query, ("at", "before"))
        _to_tuple(self, "words", "readout", "a list of at least one word")
        if not self.words or not all(isinstance(word, str) and word.strip() for word in self.words):
            raise bad_value("readout.words", self.words, "a list of at least one word, none of them blank")
        _check_int("readout.max_bytes", self.max_bytes, low=1)
        _check_choice("readout.kernel", self.kernel, ("auto", "torch", "triton"))

    def _check_heads(self) -> None:
        allowed = "a list of at least one [layer, head], each once, head >= 0, or null for all heads"
        _to_tuple(self, "heads", "readout", allowed)
        for pair in self.heads or ():
            fine = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
            if not fine or not all(map(_is_int, pair)) or pair[1] < 0:
                raise bad_value("readout.heads", self.heads, allowed)
        pairs = tuple((pair[0], pair[1]) for pair in self.heads or ())
        if not pairs or len(set(pairs)) < len(pairs):
            raise bad_value("readout.heads", self.heads, allowed)
        if self.layers is not None:
            raise UserError(
                f"readout.heads = {self.heads} names its layers itself, so readout.layers = {self.layers} conflicts. "
                "Set readout.layers to null."
            )
        object.__setattr__(self, "heads", pairs)


@dataclass(frozen=True)
class ScoringConfig:
    """ReAL: which reasoning tokens make the anomaly map, with which weight.

    select: "both" keeps tokens by S_T and S_I (the paper); "text" by S_T only, "image" by S_I only, "all" keeps every
        token. A score that is not selected on has no part in the weight either; with "all" every weight is 1.
    tau_t, tau_i: thresholds on the normalised S_T and S_I; in [0, 1), exceeded strictly [ours: 0.5].
    alpha, beta: weights of the normalised S_T and S_I [ours: 0.5]; used by select = "both".
    share: a component's share p_i by "area" (the paper) or by attention "mass" above the map's mean [ours].
    baseline: "none" (the paper); "normal" divides each row by the mean row of normal images, "word" by that of the
        same token [ours]. Both need ``MethodConfig.calibration``, which holds those rows.
    concentration: S_I is minus the spatial "entropy" (the paper), or the "contrast", max over mean of the row [ours].
    fallback_tokens: where no token passes the thresholds, this many of the largest weight are used [ours].
    """

    select: Literal["both", "text", "image", "all"] = "both"
    tau_t: float = 0.5
    tau_i: float = 0.5
    alpha: float = 0.5
    beta: float = 0.5
    share: Literal["area", "mass"] = "area"
    baseline: Literal["none", "normal", "word"] = "none"
    concentration: Literal["entropy", "contrast"] = "entropy"
    fallback_tokens: int = 5

    def __post_init__(self) -> None:
        _check_choice("scoring.select", self.select, ("both", "text", "image", "all"))
        for name in ("tau_t", "tau_i"):
            _check_number(f"scoring.{name}", getattr(self, name), 0.0, 1.0, "0 <= value < 1", high_open=True)
        for name in ("alpha", "beta"):
            _check_number(f"scoring.{name}", getattr(self, name), 0.0, math.inf, "a number >= 0", high_open=True)
        if self.alpha + self.beta == 0:
            raise UserError("scoring.alpha = scoring.beta = 0 gives every token weight 0. Make one of them positive.")
        _check_choice("scoring.share", self.share, ("area", "mass"))
        _check_choice("scoring.baseline", self.baseline, ("none", "normal", "word"))
        _check_choice("scoring.concentration", self.concentration, ("entropy", "contrast"))
        _check_int("scoring.fallback_tokens", self.fallback_tokens, low=1)


@dataclass(frozen=True)
class MapConfig:
    """What is done to the finished anomaly map.

    smooth: sigma of a Gaussian in cells of the grid; 0 is none (the paper). It helps with a baseline only [ours].
    """

    smooth: float = 0.0

    def __post_init__(self) -> None:
        _check_number("map.smooth", self.smooth, 0.0, 100.0, "0 <= sigma <= 100, in cells")


@dataclass(frozen=True)
class ConsistencyConfig:
    """CGRO: the consistency reward.

    t: tokens compared, at least 2 [ours: 5].
    percentile: a token's region is what lies at or above this percentile of its own map (the paper: 95).
    jaccard: "pairwise" is the mean over pairs of regions [ours], "joint" |intersection| / |union| of all of them.
    delta_1, delta_2: an anomalous image wants J > delta_1, a normal one J < delta_2 [ours: 0.5, 0.3].
    form: "hard" is 0 or 1 (the paper), "continuous" is J or 1 - J [ours].
    gate: who can earn it: "format" only a well-formed response [ours], "accuracy" only a well-formed response with the
        right answer, "none" everyone (open to reward hacks: for ablation).
    """

    t: int = 5
    percentile: float = 95.0
    jaccard: Literal["pairwise", "joint"] = "pairwise"
    delta_1: float = 0.5
    delta_2: float = 0.3
    form: Literal["hard", "continuous"] = "hard"
    gate: Literal["format", "accuracy", "none"] = "format"

    def __post_init__(self) -> None:
        _check_int("consistency.t", self.t, low=2)
        _check_number("consistency.percentile", self.percentile, 0.0, 100.0, "0 < value < 100", True, True)
        _check_choice("consistency.jaccard", self.jaccard, ("pairwise", "joint"))
        for name in ("delta_1", "delta_2"):
            _check_number(f"consistency.{name}", getattr(self, name), 0.0, 1.0, "0 <= value <= 1")
        _check_choice("consistency.form", self.form, ("hard", "continuous"))
        _check_choice("consistency.gate", self.gate, ("format", "accuracy", "none"))


@dataclass(frozen=True)
class MethodConfig:
    """All settings of the method.

    calibration: folder of ``realad calibrate``, whose baselines ``scoring.baseline`` divides by; None: no baseline.
    """

    spans: SpanConfig = field(default_factory=SpanConfig)
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    map: MapConfig = field(default_factory=MapConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    calibration: str | None = None

    def __post_init__(self) -> None:
        if self.calibration is not None and (not isinstance(self.calibration, str) or not self.calibration.strip()):
            raise bad_value("method.calibration", self.calibration, "a folder made by `realad calibrate`, or null")
        if self.scoring.baseline != "none" and self.calibration is None:
            raise UserError(
                f"scoring.baseline = {self.scoring.baseline} needs the attention of normal images. Make it with "
                "`realad calibrate` and set method.calibration to its folder, or set scoring.baseline to none."
            )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any] | None) -> Self:
        """Build from nested mappings (YAML, OmegaConf); what is left out keeps its default.

        Raises UserError for an unknown section or key (naming the nearest real one) and for a value out of range.
        """
        settings = _mapping("method", {} if settings is None else settings)
        sections = {f.name: f.default_factory for f in dataclasses.fields(cls)}
        built = {}
        for name, values in settings.items():
            if name == "calibration":
                built[name] = values
                continue
            if name not in sections:
                raise unknown_key(str(name), sections, "method")
            section: Any = sections[name]
            values = _mapping(f"method.{name}", {} if values is None else values)
            keys = [f.name for f in dataclasses.fields(section)]
            for key in values:
                if key not in keys:
                    raise unknown_key(str(key), keys, f"method.{name}")
            built[name] = section(**values)
        return cls(**built)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dicts; ``MethodConfig.from_dict(config.to_dict()) == config``."""
        return dataclasses.asdict(self)


def _mapping(key: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise bad_value(key, value, "a mapping of setting names to values")
    return dict(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _to_tuple(config: Any, name: str, where: str, allowed: str) -> None:
    """Lists (YAML knows no tuples) become tuples; a lone text would fall apart into letters, so it is refused."""
    value = getattr(config, name)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise bad_value(f"{where}.{name}", value, allowed)
    object.__setattr__(config, name, tuple(value))


def _check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise bad_value(key, value, ", ".join(choices))


def _check_int(key: str, value: Any, low: int) -> None:
    if not _is_int(value) or value < low:
        raise bad_value(key, value, f"a whole number >= {low}")


def _check_number(
    key: str, value: Any, low: float, high: float, allowed: str, low_open: bool = False, high_open: bool = False
) -> None:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not fine or (low_open and value == low) or (high_open and value == high):
        raise bad_value(key, value, allowed)
