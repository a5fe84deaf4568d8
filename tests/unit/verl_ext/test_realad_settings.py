"""The realad section: every mistake is one clear error."""

import pytest
from omegaconf import OmegaConf

from realad_verl.errors import UserError
from realad_verl.verl_ext.settings import RealadSettings


def _read(**section):
    return RealadSettings.from_config(OmegaConf.create({"realad": section}))


def test_defaults():
    settings = _read()
    assert (settings.w_fmt, settings.w_acc, settings.w_cons, settings.evidence) == (1, 1, 1, True)


def test_method_settings_reach_the_method():
    assert _read(method={"consistency": {"delta_1": 0.4}}).method.consistency.delta_1 == 0.4


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"w_con": 1}, ["w_con", "w_cons"]),
        ({"w_cons": -1}, ["realad.w_cons", "-1"]),
        ({"w_acc": "high"}, ["realad.w_acc", "high"]),
        ({"w_fmt": float("inf")}, ["realad.w_fmt"]),
        ({"evidence": False}, ["realad.evidence", "w_cons=0"]),
        (
            {"evidence": False, "w_cons": 0, "attention_loss": {"weight": 1}},
            ["realad.attention_loss.weight = 1", "made of"],
        ),
        ({"attention_loss": {"power": 0}}, ["realad.attention_loss.power", "> 0"]),
        ({"attention_loss": {"wieght": 1}}, ["wieght", "weight"]),
        ({"log": {"every": -2}}, ["realad.log.every", "-2"]),
        ({"log": {"evry": 2}}, ["evry", "every"]),
        ({"method": {"scoring": {"tau_t": 2}}}, ["tau_t", "2"]),
        ({"method": {"consistency": {"t": 1}}}, ["t", "1"]),
    ],
)
def test_mistakes_name_key_and_fix(section, words):
    with pytest.raises(UserError) as error:
        _read(**section)
    assert all(word in str(error.value) for word in words)


def test_missing_section_says_how_to_build_on_the_base():
    with pytest.raises(UserError, match="/cgro"):
        RealadSettings.from_config(OmegaConf.create({}))
