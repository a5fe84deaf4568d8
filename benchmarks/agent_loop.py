"""CPU time of the agent loop a sample: verl's single turn against ours, whose processor runs once.

    OMP_NUM_THREADS=1 python benchmarks/agent_loop.py [--size 420] [--json]

The tiny backbone's processor on one image a sample. What runs is the loop's prompt and what the worker makes of its
output for the reward and for the batch (features and position ids, as ``_compute_score`` and the postprocessing do);
vLLM is left out: its client answers at once. Interleaved rounds, medians.
"""

import argparse
import asyncio
import json
import os
import statistics
from functools import partial
from types import SimpleNamespace
from typing import Any

os.environ |= {"VERL_PLATFORM": "cpu", "HF_HUB_OFFLINE": "1"}

import numpy as np
import torch
from _timing import hardware, interleaved, ratio
from omegaconf import OmegaConf
from PIL import Image
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker, DictConfigWrap
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.config.model import hf_processor
from verl.workers.rollout.replica import TokenOutput

from realad_verl.data.prompts import prompt_text
from realad_verl.tiny import tiny_model_dir
from realad_verl.verl_ext.train.agent_loop import SafeSingleTurnAgentLoop
from realad_verl.verl_ext.train.dataset import TolerantDataset

LOOPS: dict[str, tuple[type, type]] = {
    "verl": (SingleTurnAgentLoop, RLHFDataset),
    "ours": (SafeSingleTurnAgentLoop, TolerantDataset),
}


class Client:
    """In place of vLLM."""

    async def generate(self, **_: Any) -> TokenOutput:
        return TokenOutput(token_ids=[5] * 64, log_probs=[-1.0] * 64)


def run_sample(name: str, processor: Any, messages: list[dict]) -> None:
    """One sample through the loop and the worker."""
    loop_class, dataset = LOOPS[name]
    rollout = {"prompt_length": 4096, "response_length": 64}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "data": {}})
    holder: Any = SimpleNamespace(processor=processor, tokenizer=processor.tokenizer)
    holder._get_mm_processor_kwargs = lambda _: {}

    async def run() -> None:
        loop = loop_class(
            trainer_config=DictConfigWrap(config),
            server_manager=Client(),
            tokenizer=processor.tokenizer,
            processor=processor,
            dataset_cls=dataset,
            data_config=DictConfigWrap(config.data),
            hf_model_type=processor.config.model_type,
        )
        output = await loop.run({}, raw_prompt=messages)
        ids = torch.tensor([output.prompt_ids + output.response_ids])
        for _ in ("reward", "batch"):
            features = AgentLoopWorker._compute_multi_modal_inputs(holder, output, ids)
            AgentLoopWorker._compute_position_ids(holder, ids, torch.ones_like(ids), features)

    asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=420)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    processor = hf_processor(str(tiny_model_dir()))
    pixels = np.random.default_rng(0).integers(0, 255, (arguments.size, arguments.size, 3), dtype=np.uint8)
    content = [{"type": "image", "image": Image.fromarray(pixels)}, {"type": "text", "text": prompt_text()}]
    messages = [{"role": "user", "content": content}]
    calls = {name: partial(run_sample, name, processor, messages) for name in LOOPS}
    seconds = interleaved(calls, arguments.rounds)
    medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    found = {"milliseconds": medians, "ratio": ratio(seconds, "ours", "verl"), "size": arguments.size} | hardware()
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in medians.items():
        print(f"{name}: {value:.1f} ms of CPU a sample at {arguments.size} x {arguments.size}")
    print(f"ratio {found['ratio']:.2f}")


if __name__ == "__main__":
    main()
