"""Does every key of a recipe exist? Hydra refuses a mistyped override, but takes any key that a recipe file adds."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from realad_verl.verl_ext.recipe.problem import Problem

# Mappings that pass on whatever they hold, to a library that has the last word on it.
OPEN = (
    "actor_rollout_ref.model.override_config",
    "actor_rollout_ref.rollout.engine_kwargs.vllm",
    "actor_rollout_ref.rollout.engine_kwargs.sglang",
    "actor_rollout_ref.rollout.engine_kwargs.trtllm",
    "ray_kwargs.ray_init.runtime_env",
)
# Keys that verl reads from a mapping of its own which neither YAML nor dataclass names.
READ_ANYWAY = {"fsdp_config.wrap_policy": {"transformer_layer_cls_to_wrap", "disable"}}
LEGACY = {
    "reward_model": "reward.reward_model",
    "custom_reward_function": "reward.custom_reward_function",
    "sandbox_fusion": "reward.sandbox_fusion",
}


@cache
def schema() -> DictConfig:
    """The base of every recipe: verl's configuration with this package's section."""
    from realad_verl.verl_ext.recipe.compose import compose_recipe

    return compose_recipe("cgro")


def unknown_keys(config: DictConfig) -> list[Problem]:
    """A problem for each key that neither verl's YAML, nor the dataclass it becomes, nor our section has."""
    given = OmegaConf.to_container(config, resolve=False)
    known = OmegaConf.to_container(schema(), resolve=False)
    assert isinstance(given, dict) and isinstance(known, dict)
    return list(_walk(given, known, ""))


def _walk(given: Mapping[Any, Any], known: Mapping[Any, Any], where: str) -> Iterator[Problem]:
    # realad.* has its own validation, with the same words (RealadSettings).
    if where in OPEN or where == "realad" or (where and not known):
        return
    allowed = set(known) | _extra(known, where)
    for key, value in given.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in allowed:
            yield _unknown(path, str(key), value, allowed)
        elif isinstance(value, Mapping) and isinstance(known.get(key), Mapping):
            yield from _walk(value, known[key], path)


def _extra(known: Mapping[Any, Any], where: str) -> set[str]:
    """Keys that are not in verl's YAML but are settings all the same."""
    if where == "ray_kwargs.ray_init":
        import ray

        # Beside its signature, ray.init reads private settings with a leading underscore.
        return set(inspect.signature(ray.init).parameters) | {"_node_ip_address", "_temp_dir", "_system_config"}
    read = (keys for end, keys in READ_ANYWAY.items() if where.endswith(end))
    if (keys := next(read, None)) is not None:
        return keys
    target = known.get("_target_")
    return {f.name for f in fields(get_class(target))} if isinstance(target, str) else set()


def _unknown(path: str, key: str, value: Any, allowed: set[str]) -> Problem:
    near = difflib.get_close_matches(key, sorted(map(str, allowed)), n=1)
    parent = path.rpartition(".")[0]
    fix = f"did you mean {parent + '.' if parent else ''}{near[0]}?" if near else "remove it"
    names = ", ".join(sorted(map(str, allowed - {"_target_"})))
    return Problem(path, value, f"unknown key; {parent or 'the top level'} has: {names}", fix)


def legacy_keys(config: DictConfig) -> Iterator[Problem]:
    """verl's main ignores its old reward keys silently: a reward set there would never be used."""
    for old, new in LEGACY.items():
        for path, value in _leaves(config.get(old), old):
            if value is not None:
                fix = f"set {new}{path.removeprefix(old)} instead"
                yield Problem(path, value, "a legacy key that verl ignores", fix)


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}")
    elif node is not None:
        yield path, node
