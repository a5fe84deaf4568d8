"""What the one trainer process does for the samples of all ranks: reward, metrics, counts of a step.

Run: ``OMP_NUM_THREADS=1 python benchmarks/trainer_step.py [--samples 16384] [--tokens 770] [--json]``. The trainer's
own method on a real TransferQueue (in a local Ray), holding what the workers leave there: summaries, verdicts, notes
and ``rm_scores``. Told apart: the queue's own reads and writes (by wall time), and the rest (CPU time of this process).
``--way before`` is what was done until the workers judged: every response decoded and parsed again.
"""

import json
import random
import time
from types import SimpleNamespace
from typing import Annotated, Any

import ray
import torch
import transfer_queue as tq
import typer
from _timing import hardware, peak_memory
from omegaconf import OmegaConf
from tensordict import TensorDict
from transformers import AutoTokenizer

from realad_verl.method.config import MethodConfig
from realad_verl.method.evidence import Evidence
from realad_verl.tiny import tiny_model_dir
from realad_verl.verl_ext.train import wire
from realad_verl.verl_ext.train.verdict import judge

FIELDS = (wire.SUMMARY, wire.VERDICT, wire.NOTES, "rm_scores")


def fields_of(n: int, tokens: int) -> TensorDict:
    """``n`` samples as the workers write them, responses of half to all of ``tokens``."""
    draw = random.Random(0)
    grid, zero = (15, 15), torch.zeros(1)
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in FIELDS}
    for _ in range(n):
        jaccard, label = draw.random(), draw.choice([0, 1])
        evidence = Evidence(None, grid, zero, zero, zero, zero > 0, 200, 9, False, jaccard, None)
        columns[wire.SUMMARY].append(wire.pack_summary(evidence, 1.0))
        columns[wire.VERDICT].append(wire.pack_verdict(wire.Verdict(label, draw.random() < 0.5, 1.0)))
        notes = {"format_reward": 1.0, "accuracy_reward": 0.0, "bad_ground_truth": 0.0, "realad_cut_tokens": 0.0}
        columns[wire.NOTES].append(wire.pack_notes(notes | {"realad_replaced": 0.0}))
        columns["rm_scores"].append(torch.zeros(draw.randint(tokens // 2, tokens)))
    return TensorDict({name: wire.jagged(vectors) for name, vectors in columns.items()}, batch_size=n)


class InMemory:
    """A stand-in that holds one batch: no Ray, and nothing to read or write."""

    def __init__(self, fields: TensorDict) -> None:
        self.fields = fields

    def kv_batch_get(self, keys, partition_id, select_fields):
        return self.fields.select(*select_fields)

    def kv_batch_put(self, keys, partition_id, fields):
        assert fields["rm_scores"].is_nested


class Clocked:
    """The queue with the wall time of its calls."""

    def __init__(self, queue: Any) -> None:
        self.seconds, self.queue = 0.0, queue

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = getattr(self.queue, name)(*arguments, **options)
            self.seconds += time.perf_counter() - began
            return result

        return call


def trainer_of(clock: Clocked) -> Any:
    """The mixin with the state that scoring a batch needs, and nothing to log."""
    from verl.trainer.ppo.v1 import get_trainer_cls  # lets the plugin register

    get_trainer_cls("cgro_sync")
    from realad_verl.verl_ext.train import trainer as module

    module.tq = clock
    made = object.__new__(module.CGROTrainerSync)
    made.realad = SimpleNamespace(w_cons=1.0, evidence=True)
    made.sample_logger = SimpleNamespace(log=lambda *_: None)
    made.realad.attention_loss = SimpleNamespace(weight=0.0)
    made._scored, made._counts = [], dict.fromkeys(("rollout/cut", "rollout/replaced", "evidence/reward_seconds"), 0.0)
    return made


def measure_now(n: int, tokens: int, queue: bool) -> dict[str, float]:
    """The step's part of the trainer, from the queue to the metrics."""
    from realad_verl.verl_ext.train.metrics import step_metrics

    keys, fields = [f"{i // 8}_{i % 8}_0" for i in range(n)], fields_of(n, tokens)
    if queue:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**9)
        storage = {"total_storage_size": n, "num_data_storage_units": 1}
        tq.init(OmegaConf.create({"backend": {"SimpleStorage": storage}}))
        batch = tq.kv_batch_put(keys=keys, partition_id="train", fields=fields, tags=[{} for _ in keys])
    else:
        batch = SimpleNamespace(keys=keys, tags=[{} for _ in keys], partition_id="train")
    clock = Clocked(tq if queue else InMemory(fields))
    trainer = trainer_of(clock)
    found: dict[str, float] = {}

    def step() -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        trainer._add_consistency(batch, {})
        metrics = step_metrics(trainer._scored)
        found["wall_s"], cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        found["queue_s"] = clock.seconds
        found["own_s"], found["cpu_s"] = found["wall_s"] - clock.seconds, cpu_s
        assert len(trainer._scored) == n and metrics["reward/total/mean"] == 1.0

    memory = peak_memory(step)
    if queue:
        ray.shutdown()
    return found | {"above_mib": memory["above_model_mib"]}


def measure_before(n: int, tokens: int) -> dict[str, float]:
    """Decoding, parsing and scoring in the trainer, without its reads."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model_dir()))
    text = "<think>" + "a scratch on the left side of the part, " * 200
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][: tokens * 3 // 4 - 8]
    ids += tokenizer("</think><answer>yes</answer>", add_special_tokens=False)["input_ids"]
    began = time.process_time()
    for _ in range(n):
        judge(tokenizer.decode(ids, skip_special_tokens=True), "yes", 0.6, MethodConfig())
    return {"cpu_s": time.process_time() - began}


def main(
    samples: Annotated[int, typer.Option(help="Responses of a step, of all ranks.")] = 16384,
    tokens: Annotated[int, typer.Option(help="Tokens of the longest response.")] = 770,
    way: Annotated[str, typer.Option(help="now, or before.")] = "now",
    queue: Annotated[bool, typer.Option(help="A real TransferQueue; without it the trainer's own work alone.")] = True,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Seconds of a step, and microseconds a sample."""
    found = measure_now(samples, tokens, queue) if way == "now" else measure_before(samples, tokens)
    each = {name.replace("_s", "_us_a_sample"): 1e6 * v / samples for name, v in found.items() if name.endswith("_s")}
    result = {"samples": samples, "tokens": tokens, "way": way, **found, **each, "hardware": hardware()}
    print(json.dumps(result, indent=1) if as_json else "\n".join(f"{k:<24}{v}" for k, v in result.items()))


if __name__ == "__main__":
    typer.run(main)
