"""Who generates the responses: vLLM where it is installed, else transformers. Evidence is the Localizer's in both."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from realad_verl.errors import UserError, bad_value

if TYPE_CHECKING:
    from realad_verl.localize import Localization, Localizer

ENGINES = ("auto", "vllm", "transformers")


class Engine(Protocol):
    """Answers a batch of images."""

    name: str
    localizer: "Localizer"

    def __call__(self, images: Sequence[Image.Image]) -> "list[Localization]": ...

    def sample(self, images: Sequence[Image.Image], n: int, seed: int) -> list[list[list[int]]]:
        """``n`` responses to each image at temperature 1, as token ids up to and with the end token."""
        ...


class TransformersEngine:
    """Generation and evidence by the Localizer alone."""

    name = "transformers"

    def __init__(self, localizer: "Localizer"):
        self.localizer = localizer

    def __call__(self, images: Sequence[Image.Image]) -> "list[Localization]":
        return self.localizer(list(images))

    def sample(self, images: Sequence[Image.Image], n: int, seed: int) -> list[list[list[int]]]:
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            flat = self.localizer.sample(images, n)
        return [flat[i * n : (i + 1) * n] for i in range(len(images))]


class VllmEngine:
    """Greedy generation by vLLM, then one teacher-forced forward of the Localizer for the evidence.

    The device is shared by two copies of the model; ``gpu_memory`` is vLLM's share of its memory. With a fixed
    ``image_size`` vLLM's context is no longer than prompt and response need. The placeholders of images, which a
    response must not hold, are never sampled.
    """

    name = "vllm"

    def __init__(
        self, localizer: "Localizer", model: str, *, max_batch: int, gpu_memory: float, image_size: int | None
    ):
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for `--json`
        from vllm import LLM, SamplingParams

        from realad_verl.backbones.base import placeholder_ids
        from realad_verl.backbones.inputs import prepare

        self.localizer = localizer
        options: dict[str, Any] = {"limit_mm_per_prompt": {"image": 1}, "max_num_seqs": max_batch, "seed": 0}
        options["dtype"] = str(localizer.model.dtype).removeprefix("torch.")
        if image_size is not None:
            prompt = prepare(localizer.processor, localizer.text, Image.new("RGB", (image_size, image_size)))
            options["max_model_len"] = len(prompt.input_ids) + localizer.max_new_tokens
        options["gpu_memory_utilization"] = gpu_memory  # on a CPU, despite its name, of the main memory
        try:
            self.llm = LLM(model=model, enforce_eager=localizer.model.device.type == "cpu", **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"vLLM cannot serve '{model}': {error}. Use --engine transformers.") from error
        blocked = dict.fromkeys(placeholder_ids(localizer.model.config), -100.0)
        self.sampling = SamplingParams(temperature=0.0, max_tokens=localizer.max_new_tokens, logit_bias=blocked or None)

    def __call__(self, images: Sequence[Image.Image]) -> "list[Localization]":
        prompts: Any = [
            {"prompt": self.localizer.text, "multi_modal_data": {"image": image.convert("RGB")}} for image in images
        ]
        outputs = self.llm.generate(prompts, self.sampling, use_tqdm=False)
        return self.localizer.explain(images, [list(output.outputs[0].token_ids) for output in outputs])

    def sample(self, images: Sequence[Image.Image], n: int, seed: int) -> list[list[list[int]]]:
        prompts: Any = [
            {"prompt": self.localizer.text, "multi_modal_data": {"image": image.convert("RGB")}} for image in images
        ]
        sampling = self.sampling.clone()
        sampling.temperature, sampling.n, sampling.seed = 1.0, n, seed
        outputs = self.llm.generate(prompts, sampling, use_tqdm=False)
        return [[list(one.token_ids) for one in output.outputs] for output in outputs]


def choose_engine(name: str) -> str:
    """ "vllm" or "transformers" for ``name``; "auto" is vLLM where it is installed. UserError for anything else."""
    if name not in ENGINES:
        raise bad_value("engine", name, ", ".join(ENGINES))
    installed = importlib.util.find_spec("vllm") is not None
    if name == "vllm" and not installed:
        raise UserError("engine = 'vllm', but vLLM is not installed. Install it, or use --engine transformers.")
    return ("vllm" if installed else "transformers") if name == "auto" else name


def build_engine(
    name: str, localizer: "Localizer", model: str, *, batch_size: int, gpu_memory: float, image_size: int | None
) -> Engine:
    """The engine called ``name`` ("vllm" | "transformers") around ``localizer``."""
    if name == "vllm":
        return VllmEngine(localizer, model, max_batch=batch_size, gpu_memory=gpu_memory, image_size=image_size)
    return TransformersEngine(localizer)


def model_identity(model: str) -> dict[str, Any]:
    """What tells one model folder from another at the same path: names and sizes of its weights, and their times.

    A hub id is its own identity.
    """
    folder = Path(model)
    if not folder.is_dir():
        return {"model": model}
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin"))
    weights = [f"{f.name}: {f.stat().st_size} bytes, {int(f.stat().st_mtime)}" for f in files]
    return {"model": str(folder.resolve()), "weights": weights}
