"""Where one checkpoint of a run is, and what the run's configuration says of its model."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from realad_verl.errors import UserError
from realad_verl.verl_ext.run_folder.checkpoints import COMPLETE, last_complete

STEP = re.compile(r"global_step_(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """``folder``: RUN/global_step_N."""

    folder: Path

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder.parent

    @property
    def step(self) -> int:
        """N of ``global_step_N``."""
        return int(self.folder.name.removeprefix("global_step_"))

    @property
    def actor(self) -> Path:
        """verl's folder of the actor's shards."""
        return self.folder / "actor"

    @property
    def huggingface(self) -> Path:
        """verl's folder of config, tokenizer and processor; its weights, if any, are not used."""
        return self.actor / "huggingface"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The run's configuration; empty where the run folder has none."""
        from omegaconf import OmegaConf

        file = self.run / "config.yaml"
        return OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}  # type: ignore[return-value]

    def setting(self, key: str, default: Any = None) -> Any:
        """The value of a dotted key of the run's configuration."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    @property
    def base_path(self) -> str | None:
        """The model that the run began with, as the configuration names it."""
        return self.setting("actor_rollout_ref.model.path")


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint that ``path`` means: a run folder (its newest whole one), ``global_step_N``, or its ``actor``.

    Raises UserError for anything else, and for one of which the trainer's list of files says that it is not whole.
    """
    path = path.expanduser().resolve()
    if path.name == "actor" and STEP.fullmatch(path.parent.name):
        path = path.parent
    if not STEP.fullmatch(path.name):
        step = last_complete(path) if path.is_dir() else None
        if step is None:
            raise UserError(
                f"{path} is no run folder with a whole checkpoint, and no global_step_N of one. `realad train` writes "
                "them to trainer.default_local_dir, every trainer.save_freq steps."
            )
        path = path / f"global_step_{step}"
    checkpoint = Checkpoint(path)
    if not checkpoint.actor.is_dir():
        raise UserError(f"{path} holds no actor/: it is no checkpoint, or its weights were removed to save space.")
    _require_whole(checkpoint)
    return checkpoint


def is_run_or_checkpoint(path: Path) -> bool:
    """Whether a folder is what :func:`find_checkpoint` is for, whole or not, rather than a model folder."""
    if not path.is_dir() or (path / "config.json").is_file():  # a model, as RUN/exported/global_step_N is
        return False
    folder = path.resolve()
    inside = folder.name == "actor" and STEP.fullmatch(folder.parent.name)
    of_run = all((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl"))  # which saved nothing, perhaps
    return bool(STEP.fullmatch(folder.name) or inside or of_run or any(folder.glob("global_step_*")))


def _require_whole(checkpoint: Checkpoint) -> None:
    """Every file of the model has the size that the trainer wrote down; a checkpoint without a list is let through."""
    file = checkpoint.folder / COMPLETE
    if not file.is_file():
        return
    sizes = json.loads(file.read_text())
    needed = {name: size for name, size in sizes.items() if name.startswith(("actor/model_", "actor/huggingface/"))}
    paths = {name: checkpoint.folder / name for name in needed}
    damaged = [n for n, path in paths.items() if not path.is_file() or path.stat().st_size != needed[n]]
    if damaged:
        raise UserError(
            f"{checkpoint.folder} is torn: {', '.join(damaged[:5])} missing or not of the size that was saved. Export "
            "an earlier checkpoint."
        )
