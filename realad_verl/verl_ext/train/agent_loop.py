"""verl's single turn for any family, made safe against sampled image tokens, and rollouts that can be repeated.

verl hands vLLM the expanded prompt, which vLLM expands again for all but Qwen's processors. Here the processor runs
once: vLLM gets the prompt with one placeholder an image, and the actor what the processor made of it.

A model may sample the id that stands for a piece of an image. No forward accepts such a response: the image holds
fewer features than the sequence asks for. So a response ends before the first one, as if the length limit were there:
the tokens that stay keep their probabilities.

vLLM draws from one generator in the order in which requests happen to arrive. With ``realad.deterministic=true`` each
request carries a seed made of the run's seed, the step, the row and the sample's place in its group, so that the tokens
depend on neither order nor batching.
"""

# verl's classes, TensorDict fields and jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportAbstractUsage=false, reportArgumentType=false

import zlib
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.utils.tokenizer import get_processor_token_id
from verl.utils.tokenizer.chat_template import apply_chat_template

from realad_verl.backbones.base import placeholder_ids
from realad_verl.verl_ext.names import AGENT_LOOP, CUT, FEATURES, SEEDED_AGENT_LOOP
from realad_verl.verl_ext.plugin import note
from realad_verl.verl_ext.train import families


def sample_seed(seed: int, step: int, index: int, session: int) -> int:
    """A 31-bit seed for one response."""
    return zlib.crc32(f"{seed}/{step}/{index}/{session}".encode()) & 0x7FFFFFFF


MEDIA = ("image", "video", "audio")


def cut_at_media(output: AgentLoopOutput, media_ids: set[int]) -> AgentLoopOutput:
    """End the response before its first token in ``media_ids``, in place.

    ValueError where that is its first token: verl drops the response then, and its group goes on without it.
    """
    cut = next((i for i, token in enumerate(output.response_ids) if token in media_ids), None)
    if cut == 0:
        raise ValueError("the response begins with an image token")
    output.extra_fields[CUT] = 0 if cut is None else len(output.response_ids) - cut
    if cut is not None:
        output.response_ids, output.response_mask = output.response_ids[:cut], output.response_mask[:cut]
        if output.response_logprobs is not None:
            output.response_logprobs = output.response_logprobs[:cut]
    return output


def _placeholders(processor: Any) -> set[int]:
    """The ids that the model replaces by features; a processor may call its placeholder by another name."""
    config = getattr(processor, "config", None)
    return placeholder_ids(config) if config is not None else set()


@register(AGENT_LOOP)
class SafeSingleTurnAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn loop; see :func:`cut_at_media`. One instance serves one sample."""

    _features: dict[str, Any] | None = None

    async def ct_build_initial_tokens(self, messages, tools=None, images=None, videos=None, audios=None, **kwargs):
        if not images or tools or videos or audios:
            return await super().ct_build_initial_tokens(messages, tools, images, videos, audios, **kwargs)

        def render() -> families.Rendered:
            options = dict(self.apply_chat_template_kwargs)
            text = apply_chat_template(self.processor, messages, tokenize=False, add_generation_prompt=True, **options)
            return families.render(self.processor, text, images, dict(self.mm_processor_kwargs or {}))

        prompt = await self.loop.run_in_executor(None, render)
        limit = self.rollout_config.prompt_length
        if len(prompt.ids) > limit:
            raise ValueError(f"a prompt of {len(prompt.ids)} tokens, more than data.max_prompt_length = {limit}")
        self.server_manager = families.PlainPrompts(self.server_manager, prompt.plain_ids)
        self._features = prompt.features
        return prompt.ids

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs) -> AgentLoopOutput:
        output = await super().run(sampling_params, priority=priority, **kwargs)
        if self._features is not None:
            output.multi_modal_data = {**(output.multi_modal_data or {}), FEATURES: self._features}
        ids = (get_processor_token_id(self.processor, name) for name in MEDIA)
        return cut_at_media(output, {token for token in ids if token is not None} | _placeholders(self.processor))


@register(SEEDED_AGENT_LOOP)
class SeededSingleTurnAgentLoop(SafeSingleTurnAgentLoop):
    """The same with a seed in the sampling parameters."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs) -> AgentLoopOutput:
        places = (kwargs.get("global_steps", 0), kwargs.get("index", 0), kwargs.get("session_id", 0))
        seed = sample_seed(self.rollout_config.seed, *(int(place) for place in places))
        return await super().run({**sampling_params, "seed": seed}, priority=priority, **kwargs)


note(f"agent loop {AGENT_LOOP}")
note(f"agent loop {SEEDED_AGENT_LOOP}")
