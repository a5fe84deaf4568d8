"""Rollouts that can be repeated: every response is sampled with a seed of its own.

vLLM draws from one generator in the order in which requests happen to arrive. With ``realad.deterministic=true`` each
request carries a seed made of the run's seed, the step, the row and the sample's place in its group, so that the tokens
depend on neither order nor batching.
"""

# verl's classes, TensorDict fields and jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportAbstractUsage=false

import zlib
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from realad_verl.verl_ext.names import SEEDED_AGENT_LOOP
from realad_verl.verl_ext.plugin import note


def sample_seed(seed: int, step: int, index: int, session: int) -> int:
    """A 31-bit seed for one response."""
    return zlib.crc32(f"{seed}/{step}/{index}/{session}".encode()) & 0x7FFFFFFF


@register(SEEDED_AGENT_LOOP)
class SeededSingleTurnAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn loop with a seed in the sampling parameters."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs) -> AgentLoopOutput:
        places = (kwargs.get("global_steps", 0), kwargs.get("index", 0), kwargs.get("session_id", 0))
        seed = sample_seed(self.rollout_config.seed, *(int(place) for place in places))
        return await super().run({**sampling_params, "seed": seed}, priority=priority, **kwargs)


note(f"agent loop {SEEDED_AGENT_LOOP}")
