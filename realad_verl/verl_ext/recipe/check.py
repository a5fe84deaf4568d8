"""Checks a composed recipe without a GPU: the keys, the rules of this package, then verl's own validation.

``realad check`` shows what is found; ``realad train`` refuses to start on it (:func:`require_ok`).
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from realad_verl.errors import UserError
from realad_verl.verl_ext.recipe.check_attention import attention_loss_pairs
from realad_verl.verl_ext.recipe.check_cluster import CLUSTER
from realad_verl.verl_ext.recipe.check_keys import legacy_keys, unknown_keys
from realad_verl.verl_ext.recipe.check_pairs import PAIRS
from realad_verl.verl_ext.recipe.check_rules import ARITHMETIC, counts_are_positive
from realad_verl.verl_ext.recipe.model_facts import local_model
from realad_verl.verl_ext.recipe.problem import Problem, Setup

# Sections that verl turns into its dataclasses, which validate themselves.
SECTIONS = ("actor_rollout_ref.actor", "actor_rollout_ref.rollout", "algorithm")
REFERENCE = "actor_rollout_ref.ref"
VERL_REFUSALS = (ValueError, AssertionError, TypeError, NotImplementedError, HydraException, OmegaConfBaseException)


def check_config(config: DictConfig, *, verl: bool = True) -> list[Problem]:
    """Everything that is wrong with a composed recipe, errors first; an empty list is a recipe that may run.

    ``verl`` False leaves verl's own validation out, and so the seconds that importing verl takes. ``config`` is not
    changed.
    """
    setup = Setup(config)
    problems = [*unknown_keys(config), *legacy_keys(config)]
    counts = list(counts_are_positive(setup))
    problems += counts
    if not counts:
        rules = (*ARITHMETIC, *PAIRS, *CLUSTER, attention_loss_pairs)
        problems += [problem for rule in rules for problem in rule(setup)]
    if verl and not any(p.level == "error" for p in problems):
        problems += verl_problems(config)
    return sorted(problems, key=lambda p: p.level != "error")


def require_ok(config: DictConfig) -> list[Problem]:
    """Raise UserError naming every error of ``config``; return its warnings.

    A run needs its data, so data files that were never set are errors here. verl's own validation is left to the
    launcher, which runs it anyway.
    """
    problems = check_config(config, verl=False)
    errors = [p for p in problems if p.level == "error" or p.key.startswith("data.")]
    if errors:
        raise UserError("the recipe cannot run:\n" + "\n".join(f"  - {problem}" for problem in errors))
    return problems


def verl_problems(config: DictConfig) -> list[Problem]:
    """What verl's dataclasses and its ``validate_config`` refuse. Imports verl."""
    if config.trainer.device == "cpu":
        os.environ.setdefault("VERL_PLATFORM", "cpu")  # verl picks its platform when it is imported
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(_verl_problems(config.copy()))


def _verl_problems(config: DictConfig) -> Iterator[Problem]:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    sections = {key: OmegaConf.select(config, key) for key in SECTIONS}
    if need_reference_policy(config):
        sections[REFERENCE] = _reference_section(config)
    if need_critic(config):
        sections["critic"] = config.critic
    for key, section in sections.items():
        try:
            omega_conf_to_dataclass(section)
        except VERL_REFUSALS as error:
            yield Problem(key, "(section)", f"verl refuses it: {_last_words(error)}", "correct the setting it names")
            return
    try:
        validate_config(
            config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config)
        )
        _model_dataclass(config)
    except VERL_REFUSALS as error:
        yield Problem("(recipe)", "", f"verl refuses it: {_last_words(error)}", "correct the setting it names")


def _reference_section(config: DictConfig) -> DictConfig:
    """The reference section as verl's worker renames it before it becomes an actor dataclass."""
    section: Any = OmegaConf.to_container(OmegaConf.select(config, REFERENCE), resolve=True)
    renamed = {
        "log_prob_use_dynamic_bsz": "use_dynamic_bsz",
        "log_prob_max_token_len_per_gpu": "ppo_max_token_len_per_gpu",
    }
    for name in ("micro_batch_size", "micro_batch_size_per_gpu"):
        renamed[f"log_prob_{name}"] = f"ppo_{name}"
    section = {renamed.get(key, key): value for key, value in section.items()}
    section["ppo_mini_batch_size"] = config.actor_rollout_ref.actor.ppo_mini_batch_size
    return DictConfig(section)


def _model_dataclass(config: DictConfig) -> None:
    """verl's model section reads the model's files: only where they are here."""
    from verl.utils.config import omega_conf_to_dataclass

    if local_model(config.actor_rollout_ref.model.path) is not None:
        omega_conf_to_dataclass(config.actor_rollout_ref.model)


def _last_words(error: BaseException) -> str:
    """The innermost cause of an error that Hydra wrapped, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
