"""``hybrid_engine: false`` of verl's separate_async trainer can start.

Without it the trainer's ``_setup`` ends with a TypeError: it calls ``logger.info(..., flush=True)``, and a logger takes
no ``flush``. (With ``VERL_LOGGING_LEVEL=WARNING`` the call is skipped, and so is the fault.)
"""

import logging
from collections.abc import MutableMapping
from typing import Any

TARGET = "verl.trainer.ppo.v1.trainer_separate_async"
SEEN_IN = ("verl 0.9.1",)


class _WithoutFlush(logging.LoggerAdapter):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs.pop("flush", None)
        return msg, kwargs


def repair(module: Any) -> None:
    """Patch ``module.logger`` (verl.trainer.ppo.v1.trainer_separate_async)."""
    assert isinstance(module.logger, logging.Logger), "verl's separate_async trainer has another logger"
    module.logger = _WithoutFlush(module.logger, {})
