"""The settings of the tiny backbone's warm start."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the warm start, all ours.

    ``naming_steps`` train the vision tower alone to name what each image token shows, in the language model's own
    words, on images with ``naming_defects`` defects each; ``steps`` then train the language model to talk, the vision
    tower frozen; ``joint_steps`` train both, at ``joint_lr``, with the naming kept at weight ``naming_weight``.
    """

    steps: int = 250
    naming_steps: int = 1300
    naming_defects: int = 3
    joint_steps: int = 350
    naming_weight: float = 0.3
    batch: int = 16
    lr: float = 3e-3
    joint_lr: float = 1e-3
    warmup: int = 60
    weight_decay: float = 0.05
    informative_weight: float = 3.0
    seed: int = 0
