"""What the agent loop's processor made of the images, in place of a second and a third run of it.

verl 0.9.1 decodes the expanded prompt without its special tokens and gives the text back to the processor, once for the
reward and once for the batch. The processors of InternVL, Gemma 3, SmolVLM and Idefics3 then find an image without a
placeholder and refuse, and all pay for the work again.
"""

import functools
import inspect
from typing import Any

from realad_verl.verl_ext.names import FEATURES

TARGET = "verl.experimental.agent_loop.agent_loop"
SEEN_IN = ("verl 0.9.1",)


def repair(module: Any) -> None:
    """Patch ``module.AgentLoopWorker._compute_multi_modal_inputs`` to return a copy of what the loop kept."""
    worker = module.AgentLoopWorker
    original = worker._compute_multi_modal_inputs
    assert list(inspect.signature(original).parameters) == ["self", "output", "input_ids"]

    @functools.wraps(original)
    def compute_multi_modal_inputs(self: Any, output: Any, input_ids: Any) -> dict[str, Any]:
        features = (output.multi_modal_data or {}).get(FEATURES)
        return original(self, output, input_ids) if features is None else dict(features)

    worker._compute_multi_modal_inputs = compute_multi_modal_inputs
