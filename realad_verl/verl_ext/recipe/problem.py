"""What a check of a recipe finds, and what every rule gets to look at."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from realad_verl.errors import UserError
from realad_verl.verl_ext.recipe.model_facts import ModelFacts, model_facts


@dataclass(frozen=True)
class Problem:
    """One finding: the key, its value, what is allowed, and what to do about it.

    ``level``: an "error" stops ``realad train`` and makes ``realad check`` fail; a "warning" is shown.
    """

    key: str
    value: Any
    allowed: str
    fix: str
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r}: {self.allowed}. Fix: {self.fix}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {name: getattr(self, name) for name in ("level", "key", "allowed", "fix")} | {"value": plain(self.value)}


@dataclass(frozen=True)
class Setup:
    """A composed recipe, with short names for what the rules read."""

    config: DictConfig

    def get(self, key: str, default: Any = None) -> Any:
        """The resolved value of a dotted key; ``default`` where it is missing or null."""
        value = OmegaConf.select(self.config, key, throw_on_missing=False)
        return default if value is None else value

    @property
    def actor(self) -> DictConfig:
        return self.config.actor_rollout_ref.actor

    @property
    def rollout(self) -> DictConfig:
        return self.config.actor_rollout_ref.rollout

    @property
    def model(self) -> DictConfig:
        return self.config.actor_rollout_ref.model

    @property
    def trainer_mode(self) -> str:
        return self.config.trainer.v1.trainer_mode

    @property
    def is_cgro(self) -> bool:
        return self.trainer_mode.startswith("cgro_")

    @property
    def is_separate(self) -> bool:
        return self.trainer_mode.endswith("separate_async")

    @property
    def evidence(self) -> bool:
        return self.is_cgro and bool(self.get("realad.evidence", True))

    @property
    def n_gpus(self) -> int:
        """Ranks of the trainer (actor and reference)."""
        return self.config.trainer.nnodes * self.config.trainer.n_gpus_per_node

    @property
    def ulysses(self) -> int:
        return self.get("actor_rollout_ref.actor.ulysses_sequence_parallel_size", 1)

    @property
    def dp_size(self) -> int:
        """Data-parallel groups of the actor."""
        return max(1, self.n_gpus // self.ulysses)

    @property
    def shards(self) -> int:
        """Ranks that one copy of the actor is sharded over (all of them, or ``fsdp_size``)."""
        size = self.get("actor_rollout_ref.actor.fsdp_config.fsdp_size", -1)
        return size if size > 0 else self.n_gpus

    @property
    def step_responses(self) -> int:
        """Responses whose log-probabilities are computed in one call, over all ranks."""
        batch = self.config.actor_rollout_ref.actor.ppo_mini_batch_size if self.is_separate else None
        return (batch or self.config.data.train_batch_size) * self.rollout.n

    @property
    def needs_reference(self) -> bool:
        return bool(self.get("actor_rollout_ref.actor.use_kl_loss") or self.get("algorithm.use_kl_in_reward"))

    @cached_property
    def facts(self) -> ModelFacts | None:
        """Sizes of the model, where it is local or known by name; why a folder is unreadable is a rule of its own."""
        try:
            return model_facts(self.model.path)
        except UserError:
            return None


Rule = Callable[[Setup], Iterable[Problem]]


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    return value if isinstance(value, str | int | float | bool | list | dict) or value is None else str(value)
