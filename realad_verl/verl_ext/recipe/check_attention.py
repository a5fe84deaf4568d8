"""What the attention loss does not work with, and what it cannot tell of itself."""

from collections.abc import Iterator

from realad_verl.verl_ext.recipe.problem import Problem, Setup

WEIGHT = "realad.attention_loss.weight"
# Fewer images a step leave the baseline, the mean of normal images' rows, and the group's right answers to chance.
FEW_IMAGES = 8


def attention_loss_pairs(s: Setup) -> Iterator[Problem]:
    weight = s.get(WEIGHT, 0.0)
    if not weight or not s.is_cgro:
        return
    if s.get("distillation.enabled"):
        yield Problem(
            "distillation.enabled",
            True,
            f"verl's distillation takes the place of the loss function that the attention loss ({WEIGHT} = {weight}) "
            "is added to",
            f"false, or {WEIGHT}=0",
        )
    images = s.config.data.train_batch_size
    if images < FEW_IMAGES:
        yield Problem(
            "data.train_batch_size",
            images,
            "the attention loss measures each step by the normal images of the steps before it",
            f"at least {FEW_IMAGES}, or realad.attention_loss.decay nearer to 1",
            "warning",
        )
