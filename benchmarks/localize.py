"""Localization against generation alone, images per second by batch size, and vLLM against transformers.

    OMP_NUM_THREADS=1 python benchmarks/localize.py [--engines transformers,vllm] [--json]

The shipped tiny backbone on procedural images. ``generate``: responses only; ``localize``: the same with attention and
score read as it generates (of vLLM's responses by one teacher-forced forward after it), and maps. Interleaved rounds,
medians, CPU time of this process and its children (vLLM works in two more), since other work on the machine hardly
changes it. ``--layers N`` takes a random model of Qwen2.5-0.5B's layer shape instead, which is made to say a reasoning
and an answer of ``--tokens`` tokens.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from _timing import hardware
from PIL import Image
from transformers import LogitsProcessor

from realad_verl.data.procedural import ProceduralDefects
from realad_verl.localize import Localizer
from realad_verl.tiny import tiny_model_dir
from realad_verl.tiny.arch import IMAGE_SIZE, tiny_config, tiny_processor
from realad_verl.tiny.tokenizer import build_tokenizer


def images(count: int) -> list[Image.Image]:
    """Procedural images, 168 x 168, good and defective."""
    dataset = ProceduralDefects(IMAGE_SIZE)
    return [Image.fromarray(dataset[i].image) for i in range(count)]


def save_wide_model(folder: Path, layers: int) -> None:
    """A random model with the decoder layers of Qwen2.5-0.5B (hidden 896, 14 heads) around the tiny vision tower."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    tokenizer = build_tokenizer()
    config: Any = tiny_config(tokenizer)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 896, 4864, layers
    text.num_attention_heads, text.num_key_value_heads = 14, 2
    text.rope_parameters = {"rope_type": "default", "rope_theta": 16.0, "mrope_section": [8, 12, 12]}
    text.layer_types = ["full_attention"] * layers
    config.vision_config.out_hidden_size = 896
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tiny_processor(tokenizer).save_pretrained(folder)


class Dictated(LogitsProcessor):
    """Makes a random model say one response."""

    def __init__(self, response: list[int], width: int) -> None:
        self.response, self.width = response, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = min(input_ids.shape[1] - self.width, len(self.response) - 1)
        return scores.index_fill(1, torch.tensor([self.response[step]]), 1e4)


def dictate(localizer: Localizer, tokens: int) -> None:
    """From now on its model says ``tokens`` tokens: a reasoning, then an answer."""
    encode, generate = localizer.tokenizer.encode, localizer.model.generate
    begin, word, end = (encode(text) for text in ("<think>", " defect", "</think><answer> yes </answer>"))
    end.append(localizer.tokenizer.eos_token_id)
    response = begin + word * ((tokens - len(begin) - len(end)) // len(word)) + end

    def dictated(*, logits_processor: list[Any], **kwargs: Any) -> Any:
        voice = Dictated(response, kwargs["input_ids"].shape[1])
        return generate(logits_processor=[*logits_processor, voice], **kwargs)

    localizer.model.generate = dictated


def transformers_calls(localizer: Localizer) -> dict[str, Callable[[list[Image.Image]], Any]]:
    """The Localizer's own generation, and all of it."""
    from realad_verl.backbones.inputs import prepare

    def generate(batch: list[Image.Image]) -> list[list[int]]:
        prompts = [prepare(localizer.processor, localizer.text, image) for image in batch]
        return localizer._generate(prompts)

    return {"generate": generate, "localize": localizer}


def vllm_calls(localizer: Localizer, model: str, max_batch: int) -> dict[str, Callable[[list[Image.Image]], Any]]:
    """The engine of ``realad evaluate --engine vllm``: its generation, and all of it."""
    from realad_verl.evaluate.engines import VllmEngine

    engine = VllmEngine(localizer, model, max_batch=max_batch, gpu_memory=0.1, image_size=IMAGE_SIZE)

    def generate(batch: list[Image.Image]) -> Any:
        prompts: Any = [{"prompt": localizer.text, "multi_modal_data": {"image": image}} for image in batch]
        return engine.llm.generate(prompts, engine.sampling, use_tqdm=False)

    return {"generate": generate, "localize": engine}


def cpu_seconds() -> float:
    """CPU time so far of this process and its children."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(t.user + t.system for t in times)


def measure(calls: dict[str, Callable], batches: list[int], count: int, rounds: int) -> list[dict[str, Any]]:
    """Images per CPU second of each call and batch size, and localize's time over generate's of the same round."""
    records = []
    for size in batches:
        pool = images(max(count, size))
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(rounds + 1):
            for name, call in list(calls.items()) if turn % 2 else list(calls.items())[::-1]:
                start = cpu_seconds()
                for first in range(0, len(pool), size):
                    call(pool[first : first + size])
                if turn:  # the first round warms up
                    seconds[name].append(cpu_seconds() - start)
        ratios = [a / b for a, b in zip(seconds["localize"], seconds["generate"], strict=True)]
        rates = {f"{name}_images_per_cpu_s": len(pool) / statistics.median(taken) for name, taken in seconds.items()}
        records.append(
            {"batch": size, "images": len(pool), **rates, "localize_over_generate": statistics.median(ratios)}
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="transformers,vllm")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--images", type=int, default=32, help="images a round, at least one batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of a response")
    parser.add_argument("--layers", type=int, default=0, help="random 0.5B-shaped decoder of so many layers instead")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    batches = [int(size) for size in arguments.batches.split(",")]
    result: dict[str, Any] = {"hardware": hardware(), "layers": arguments.layers, "tokens": arguments.tokens}
    with tempfile.TemporaryDirectory() as folder:
        model = str(tiny_model_dir())
        if arguments.layers:
            model = folder
            save_wide_model(Path(folder), arguments.layers)
        localizer = Localizer.from_pretrained(model, max_new_tokens=arguments.tokens)
        if arguments.layers:
            dictate(localizer, arguments.tokens)
        for name in arguments.engines.split(","):
            made = (
                transformers_calls(localizer) if name == "transformers" else vllm_calls(localizer, model, max(batches))
            )
            result[name] = measure(made, batches, arguments.images, arguments.rounds)
            print(f"{name} done", file=sys.stderr)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for name in arguments.engines.split(","):
        for r in result[name]:
            print(f"{name:>12}, batch {r['batch']:>2}: " + ", ".join(f"{k} {v:.2f}" for k, v in list(r.items())[2:]))


if __name__ == "__main__":
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    main()
