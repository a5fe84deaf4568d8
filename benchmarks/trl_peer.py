"""What attention evidence costs in TRL's GRPOTrainer, where a reward function has to run a forward of its own for it.

    pip install -r benchmarks/requirements-trl.txt -e .   # an environment of its own
    OMP_NUM_THREADS=1 python benchmarks/trl_peer.py [--steps 6] [--rounds 2] [--json]

The shipped tiny backbone on procedural images, one process on the CPU, two variants in turn:

- rewards: format and accuracy (``reward_fns``) alone;
- eager: the same, and a second reward function that runs the model once more over prompt and completion with eager
  attention and ``output_attentions=True``, and reduces it to J and the consistency reward with ``realad_verl.method``.

The second reward has weight 0, so both variants sample the same responses and make the same updates; what differs is
the cost. In its favour: only the decoder is eager, only in that forward, and a group's image is prepared once. Reported
are CPU seconds from the end of one step to the end of the next, medians, the first of each job (warm-up) left out.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from typing import Any

import torch
from _timing import hardware, ratio
from eager_evidence import assert_same
from PIL import Image

from realad_verl.attention.eager_reference import mean_rows
from realad_verl.attention.readout import AttentionReadout, RowRequest
from realad_verl.backbones import backbone_for
from realad_verl.backbones.inputs import chat_text, collate, prepare
from realad_verl.data.procedural import ProceduralDefects
from realad_verl.data.prompts import hf_messages, prompt_text
from realad_verl.evidence import EvidenceBuilder
from realad_verl.method.config import MethodConfig
from realad_verl.method.consistency import consistency_score
from realad_verl.method.evidence import Evidence
from realad_verl.method.labels import LABEL_TO_ANSWER
from realad_verl.method.spans import parse_response
from realad_verl.tiny import tiny_model_dir
from realad_verl.tiny.arch import IMAGE_SIZE
from reward_fns.compose import compute_score

MICRO_BATCH = 16  # sequences a forward, in TRL's loss and in the reward's forward alike
LENGTH = "completions/mean_length"  # in TRL's log


def score(completions: list, label: list[int], **_: Any) -> list[float]:
    """Format and accuracy, of TRL's completions (one assistant message each)."""
    texts = [completion[0]["content"] for completion in completions]
    answers = [LABEL_TO_ANSWER[each] for each in label]
    return [compute_score("realad/procedural", *pair)["score"] for pair in zip(texts, answers, strict=True)]


class EagerConsistency:
    """TRL reward function: the consistency reward of each completion, from eager attention of the model in training."""

    def __init__(self, processor: Any, generations: int, cfg: MethodConfig) -> None:
        self.processor, self.generations, self.cfg = processor, generations, cfg
        self.text = chat_text(processor, hf_messages())
        self.model: Any = None
        self.seconds: list[float] = []  # CPU seconds of each call
        self.checked = False

    def __call__(self, completions: list, completion_ids: list, image: list, label: list[int], **_: Any) -> list[float]:
        started = time.process_time()
        n = self.generations
        prompts = [prepare(self.processor, self.text, each) for each in image[::n]]
        found: list[Evidence] = []
        for first in range(0, len(completion_ids), MICRO_BATCH):
            some = range(first, min(first + MICRO_BATCH, len(completion_ids)))
            found += self.evidence([prompts[i // n] for i in some], [torch.tensor(completion_ids[i]) for i in some])
        parsed = [parse_response(completion[0]["content"], self.cfg.spans) for completion in completions]
        rewards = [
            consistency_score(
                evidence.jaccard,
                truth,
                well_formed=response.well_formed,
                accurate=response.answer == LABEL_TO_ANSWER[truth],
                cfg=self.cfg.consistency,
            )
            for evidence, truth, response in zip(found, label, parsed, strict=True)
        ]
        self.seconds.append(time.process_time() - started)
        return rewards

    @torch.no_grad()
    def evidence(self, prompts: Sequence[Any], responses: Sequence[torch.Tensor]) -> list[Evidence]:
        """One forward of prompts + responses."""
        tokenizer = self.processor.tokenizer
        builder = EvidenceBuilder(self.model.config, tokenizer, self.cfg)
        plans = [
            builder.plan(torch.cat([p.input_ids, r]), len(p.input_ids), p.image, batch_row=i)
            for i, (p, r) in enumerate(zip(prompts, responses, strict=True))
        ]
        batch = collate(prompts, responses, tokenizer.pad_token_id, "right", backbone_for(self.model.config))
        requests = [plan.request for plan in plans if plan.request is not None]
        self.model.set_attn_implementation({"text_config": "eager"})
        output = self.model(**batch, output_attentions=True, use_cache=False)
        self.model.set_attn_implementation({"text_config": "sdpa"})
        rows = mean_rows(output.attentions, requests)
        if not self.checked:
            self._check(batch, requests, rows)
        return builder.reduce(plans, rows)

    def _check(self, batch: dict, requests: list[RowRequest], rows: list[torch.Tensor]) -> None:
        """Once, in the step that is not counted: the same rows as the package's read-out."""
        with AttentionReadout(self.model).reading(requests) as reading:
            self.model(**batch, use_cache=False)
        assert_same(rows, reading.rows())
        self.checked = True


def dataset(images: int) -> Any:
    """Procedural images with prompt and label, as TRL's GRPOTrainer wants them."""
    from datasets import Dataset

    samples = [ProceduralDefects(IMAGE_SIZE)[i] for i in range(images)]
    columns = {
        "prompt": [[{"role": "user", "content": prompt_text()}] for _ in samples],
        "image": [Image.fromarray(sample.image) for sample in samples],
        "label": [sample.label for sample in samples],
    }
    return Dataset.from_dict(columns)


def run(variant: str, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """One job of ``--steps`` counted steps: of each, its CPU seconds, those of the second reward, tokens a response."""
    from transformers import AutoProcessor, TrainerCallback
    from trl import GRPOTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.process_time())

    processor: Any = AutoProcessor.from_pretrained(tiny_model_dir())
    consistency = EagerConsistency(processor, arguments.generations, MethodConfig())
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=str(tiny_model_dir()),
            reward_funcs=[score, consistency] if variant == "eager" else [score],
            processing_class=processor,
            train_dataset=dataset(arguments.images * (arguments.steps + 1)),
            callbacks=[Clock()],
            args=settings(variant, arguments, folder),
        )
        consistency.model = trainer.accelerator.unwrap_model(trainer.model)
        trainer.train()
    lengths = [entry[LENGTH] for entry in trainer.state.log_history if LENGTH in entry]
    steps = [end - start for start, end in zip(ends, ends[1:], strict=False)]
    return {"step_cpu_s": steps, "reward_cpu_s": consistency.seconds[1:], "response_tokens": lengths[1:]}


def settings(variant: str, arguments: argparse.Namespace, folder: str) -> Any:
    """TRL's own defaults but for what a small CPU job needs: fp32, no checkpoints, no recomputed activations."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=folder,
        max_steps=arguments.steps + 1,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=arguments.images * arguments.generations // MICRO_BATCH,
        num_generations=arguments.generations,
        max_completion_length=64,
        reward_weights=[1.0, 0.0] if variant == "eager" else [1.0],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        model_init_kwargs={"attn_implementation": "sdpa", "dtype": "float32"},
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16, help="a step")
    parser.add_argument("--generations", type=int, default=4, help="responses an image")
    parser.add_argument("--steps", type=int, default=6, help="counted steps a job")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    jobs: dict[str, list[dict[str, list[float]]]] = {"rewards": [], "eager": []}
    with redirect_stdout(sys.stderr):  # TRL prints its log
        for turn in range(arguments.rounds):
            for name in list(jobs)[:: 1 - 2 * (turn % 2)]:
                jobs[name].append(run(name, arguments))
    found = {name: {key: [v for job in runs for v in job[key]] for key in runs[0]} for name, runs in jobs.items()}
    if found["rewards"]["response_tokens"] != found["eager"]["response_tokens"]:
        raise RuntimeError("the two variants did not sample the same responses")
    seconds = {name: values["step_cpu_s"] for name, values in found.items()}
    report = {
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("trl", "transformers", "torch")},
        "responses_a_step": arguments.images * arguments.generations,
        "steps_counted": len(seconds["eager"]),
        "step_cpu_s": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": ratio(seconds, "eager", "rewards"),
        "ratios": [b / a for a, b in zip(seconds["rewards"], seconds["eager"], strict=True)],
        "second_reward_cpu_s": statistics.median(found["eager"]["reward_cpu_s"]),
        "response_tokens": statistics.fmean(found["eager"]["response_tokens"]),
    }
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    a, b = report["step_cpu_s"].values()
    print(f"a step: rewards {a:.2f} CPU s, with eager evidence {b:.2f}, ratio {report['ratio']:.3f}")


if __name__ == "__main__":
    main()
