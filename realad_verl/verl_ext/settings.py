"""The ``realad:`` section of a recipe."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from realad_verl.errors import UserError, bad_value, unknown_key
from realad_verl.method.attention_loss_config import AttentionLossConfig
from realad_verl.method.config import MethodConfig


@dataclass(frozen=True)
class LogSettings:
    """Pictures of a run: every ``every`` steps (0: never), ``samples`` responses, into ``dir``."""

    every: int = 10
    samples: int = 8
    dir: str = "samples"

    def __post_init__(self):
        for name in ("every", "samples"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise bad_value(f"realad.log.{name}", getattr(self, name), "an integer >= 0")


@dataclass(frozen=True)
class WatchdogSettings:
    """Limits in seconds after which a job that stands still is ended with its stacks; 0 is no limit."""

    start_s: float = 3600.0
    phase_s: float = 3600.0

    def __post_init__(self):
        for name in ("start_s", "phase_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise bad_value(f"realad.watchdog.{name}", value, "a number of seconds >= 0")


BEST = ("image_auroc", "image_ap", "accuracy", "format", "jaccard_auroc", "well_formed")


@dataclass(frozen=True)
class ValSettings:
    """Validations of a run, every ``trainer.test_freq`` steps.

    ``evidence``: their responses go through the evidence pass. ``best``: the metric, without its ``val/``, by which the
    best step's checkpoint is kept apart; None keeps none.
    """

    evidence: bool = True
    best: str | None = None

    def __post_init__(self):
        if not isinstance(self.evidence, bool):
            raise bad_value("realad.val.evidence", self.evidence, "true, false")
        if self.best is not None and self.best not in BEST:
            raise bad_value("realad.val.best", self.best, f"null, {', '.join(BEST)}")


@dataclass(frozen=True)
class RealadSettings:
    """Every setting of ``realad:``.

    ``w_fmt``, ``w_acc``, ``w_cons`` weigh the parts of R_total (CGRO step 5; 1 each). ``evidence`` False switches the
    read-out off altogether: the run is then plain GRPO, and needs ``w_cons = 0``. ``deterministic`` seeds every
    response and fixes the order of the batch: on CPU, a rerun with the same seed gives the same rewards and weights.
    (LoRA adapters are drawn by ``actor.fsdp_config.seed`` in any case.)
    ``poll_interval`` is how often, in seconds, the trainer looks for finished samples (verl's own: 2).
    ``attention_loss`` is a loss of ours on the attention, off by default.
    """

    method: MethodConfig = field(default_factory=MethodConfig)
    w_fmt: float = 1.0
    w_acc: float = 1.0
    w_cons: float = 1.0
    evidence: bool = True
    deterministic: bool = False
    poll_interval: float = 2.0
    log: LogSettings = field(default_factory=LogSettings)
    val: ValSettings = field(default_factory=ValSettings)
    watchdog: WatchdogSettings = field(default_factory=WatchdogSettings)
    attention_loss: AttentionLossConfig = field(default_factory=AttentionLossConfig)

    def __post_init__(self):
        for name in ("w_fmt", "w_acc", "w_cons"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise bad_value(f"realad.{name}", value, "a finite number >= 0")
        if isinstance(self.poll_interval, bool) or not self.poll_interval > 0:
            raise bad_value("realad.poll_interval", self.poll_interval, "a number of seconds > 0")
        if not self.evidence and self.w_cons != 0:
            raise UserError(
                f"realad.evidence = False and realad.w_cons = {self.w_cons} conflict: the consistency reward needs the "
                "evidence. Set realad.w_cons=0 (plain GRPO) or realad.evidence=True."
            )

        if self.val.best not in (None, "accuracy", "format") and not (self.evidence and self.val.evidence):
            raise UserError(
                f"realad.val.best = {self.val.best} is read from the evidence pass of a validation, which "
                "realad.evidence = False or realad.val.evidence = False leaves out. Set both to True, or "
                "realad.val.best=accuracy."
            )
        if not self.evidence and self.attention_loss.weight:
            raise UserError(
                "realad.evidence = False and realad.attention_loss.weight = "
                f"{self.attention_loss.weight} conflict: the loss's targets are made of the evidence. Set "
                "realad.attention_loss.weight=0 or realad.evidence=True."
            )

    @classmethod
    def from_config(cls, config: DictConfig) -> "RealadSettings":
        """Read and validate the section of a composed recipe. Raises UserError naming the key."""
        section = OmegaConf.select(config, "realad")
        if section is None:
            raise UserError(
                "the recipe has no 'realad' section. Build it on the base: `defaults: [/cgro, _self_]`, "
                "or start from a shipped recipe."
            )
        values: dict[str, Any] = OmegaConf.to_container(section, resolve=True)  # type: ignore[assignment]
        _only(values, cls, "realad")
        parts = {"log": LogSettings, "val": ValSettings, "watchdog": WatchdogSettings}
        for name, part in parts.items():
            given = values.get(name) or {}
            _only(given, part, f"realad.{name}")
            values[name] = part(**given)
        values["attention_loss"] = AttentionLossConfig.from_dict(values.get("attention_loss"))
        values["method"] = MethodConfig.from_dict(values.get("method") or {})
        return cls(**values)

    def method_dict(self) -> dict[str, Any]:
        """The method settings as plain data, for the wire and for results files."""
        return asdict(self.method)


def _only(values: Mapping, cls: type, where: str) -> None:
    allowed = [f.name for f in fields(cls)]
    for key in values:
        if key not in allowed:
            raise unknown_key(key, allowed, where)
