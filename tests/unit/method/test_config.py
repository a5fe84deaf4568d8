"""Settings refuse what they do not understand, naming key, value and what is allowed."""

import pytest
from omegaconf import OmegaConf

from realad_verl.errors import UserError
from realad_verl.method.config import MethodConfig


def test_defaults_and_round_trip():
    assert MethodConfig.from_dict({}) == MethodConfig() == MethodConfig.from_dict(None)
    cfg = MethodConfig.from_dict({"readout": {"layers": [0, -1]}, "scoring": {"tau_t": 0.3}})
    assert cfg.readout.layers == (0, -1) and cfg.scoring.tau_t == 0.3
    assert MethodConfig.from_dict(cfg.to_dict()) == cfg


def test_from_omegaconf():
    cfg = MethodConfig.from_dict(OmegaConf.create({"readout": {"words": ["crack"], "layers": [3]}, "spans": None}))
    assert cfg.readout.words == ("crack",) and cfg.readout.layers == (3,)


def test_unknown_keys_name_the_nearest():
    with pytest.raises(UserError, match="'tau_x' in method.scoring.*Did you mean 'tau_[it]'"):
        MethodConfig.from_dict({"scoring": {"tau_x": 1}})
    with pytest.raises(UserError, match="'scorng' in method.*Did you mean 'scoring'"):
        MethodConfig.from_dict({"scorng": {}})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("scoring", "tau_t", 1.0),
        ("scoring", "tau_i", -0.1),
        ("scoring", "tau_t", float("nan")),
        ("scoring", "tau_t", True),
        ("scoring", "tau_t", "0.5"),
        ("scoring", "alpha", -1),
        ("scoring", "alpha", float("inf")),
        ("scoring", "select", "any"),
        ("scoring", "share", None),
        ("scoring", "fallback_tokens", 0),
        ("consistency", "t", 1),
        ("consistency", "t", 2.5),
        ("consistency", "percentile", 100),
        ("consistency", "percentile", 0),
        ("consistency", "delta_1", 1.5),
        ("consistency", "jaccard", "mean"),
        ("consistency", "form", "soft"),
        ("consistency", "gate", True),
        ("readout", "words", []),
        ("readout", "words", ["defect", " "]),
        ("readout", "words", "defect"),
        ("readout", "layers", []),
        ("readout", "layers", [1, 1]),
        ("readout", "layers", 3),
        ("readout", "heads", []),
        ("readout", "heads", [[0, 1], [0, 1]]),
        ("readout", "heads", [[0, -1]]),
        ("readout", "heads", [0, 1]),
        ("readout", "heads", [[0, 1, 2]]),
        ("readout", "heads", "all"),
        ("scoring", "baseline", "token"),
        ("scoring", "concentration", "peak"),
        ("map", "smooth", -1),
        ("readout", "query", "after"),
        ("readout", "max_bytes", 0),
        ("spans", "think_open", ""),
        ("spans", "think_open", "</think>"),
        ("spans", "answer_open", 3),
    ],
)
def test_bad_values_name_key_value_and_allowed(section, key, value):
    with pytest.raises(UserError) as error:
        MethodConfig.from_dict({section: {key: value}})
    assert f"{section}.{key}" in str(error.value) and "llowed" in str(error.value)


def test_both_weights_zero_and_no_mapping():
    with pytest.raises(UserError, match="alpha = scoring.beta = 0"):
        MethodConfig.from_dict({"scoring": {"alpha": 0, "beta": 0}})
    with pytest.raises(UserError, match="method.scoring = 3"):
        MethodConfig.from_dict({"scoring": 3})


def test_heads_baseline_and_calibration_go_together():
    cfg = MethodConfig.from_dict(
        {"readout": {"heads": [[0, 1], [-1, 3]]}, "scoring": {"baseline": "word"}, "calibration": "calibration/"}
    )
    assert cfg.readout.heads == ((0, 1), (-1, 3)) and cfg.calibration == "calibration/"
    assert MethodConfig.from_dict(cfg.to_dict()) == cfg
    with pytest.raises(UserError, match="scoring.baseline = word needs.*realad calibrate"):
        MethodConfig.from_dict({"scoring": {"baseline": "word"}})
    with pytest.raises(UserError, match="readout.heads.*readout.layers"):
        MethodConfig.from_dict({"readout": {"heads": [[0, 1]], "layers": [0]}})
    with pytest.raises(UserError, match="method.calibration = 3"):
        MethodConfig.from_dict({"calibration": 3})
