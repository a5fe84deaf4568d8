"""verl's FSDP engine with the attention read-out riding on its log-prob forward.

Chosen by ``actor_rollout_ref.model.model_type=cgro_language_model``. Without a request in the batch it *is* verl's
engine.
"""

# verl's classes, TensorDict fields and jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import accumulate

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from realad_verl.attention.readout import AttentionReadout
from realad_verl.backbones import TRAINABLE
from realad_verl.data.parallel import Overlap
from realad_verl.errors import UserError
from realad_verl.evidence import EvidenceBuilder, EvidencePlan, on_cpu
from realad_verl.method.attention_loss_config import AttentionLossConfig
from realad_verl.method.config import MethodConfig
from realad_verl.method.evidence import Evidence
from realad_verl.verl_ext.names import ENGINE
from realad_verl.verl_ext.plugin import note
from realad_verl.verl_ext.train import families, weights, wire
from realad_verl.verl_ext.train.answers import AnswerReading, answer_at, answers
from realad_verl.verl_ext.train.attention.loss import AttentionTeacher, count_tokens, taught_step
from realad_verl.verl_ext.train.attention.wire import LOSS_KEY
from realad_verl.verl_ext.train.verdict import notes, verdicts

logger = logging.getLogger(__name__)

# The batch carries the request as JSON: {"method": {...MethodConfig...}, "detail": bool}. A string passes verl's
# metadata untouched, and the worker needs no configuration of its own. A method of null: no read-out, notes only.
REQUEST_KEY = "realad_evidence"


def make_request(
    method: Mapping | None, detail: bool, attention_loss: AttentionLossConfig | None = None, answer: bool = False
) -> str:
    """The value of ``REQUEST_KEY`` that turns the read-out on; ``detail`` also returns map and token weights.

    ``attention_loss``: also returns the maps that its targets are made of; ``answer``: also P(yes).
    """
    request = {"method": method and dict(method), "detail": detail, "answer": answer}
    if attention_loss is not None:
        request["attention_loss"] = asdict(attention_loss)
    return json.dumps(request, sort_keys=True)


def sequence_lengths(ids: Tensor) -> list[int]:
    """Length of each sample of a batch of token ids, jagged or (all of one length) dense [B, L]."""
    return ids.offsets().diff().tolist() if ids.is_nested else [ids.shape[1]] * ids.shape[0]


@EngineRegistry.register(model_type=ENGINE, backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"])
class EvidenceEngine(FSDPEngineWithLMHead):
    """FSDP engine whose forward-only steps return evidence when the batch asks for it.

    ``rollout_dtype``: the precision of the weights that it hands to the rollout; the worker sets it.
    """

    rollout_dtype: torch.dtype | None = None

    def __init__(self, model_config, *args, **kwargs):
        if model_config.processor is None:
            # verl only warns, drops every image, and trains on the text.
            raise UserError(
                f"there is no processor for actor_rollout_ref.model.path = {model_config.path}, so verl would train "
                f"without images. Families that train: {', '.join(TRAINABLE)}. A model folder must hold its "
                "processor's files (processor_config.json or preprocessor_config.json)."
            )
        self._backbone = families.trainable(model_config.hf_config)
        # verl builds the module by this name and knows only its own two.
        model_config.model_type = "language_model"
        super().__init__(model_config, *args, **kwargs)
        self._builders: dict[str, EvidenceBuilder] = {}
        self._readouts: dict[tuple, AttentionReadout] = {}
        self._teacher = AttentionTeacher()
        self._overlap = Overlap()

    def infer_batch(self, data: TensorDict, loss_function=None):
        outputs = super().infer_batch(data, loss_function)
        request = json.loads(tu.get_non_tensor_data(data, REQUEST_KEY, default=None) or "{}")
        if "attention_loss" in request:
            cfg = AttentionLossConfig(**request["attention_loss"])
            self._teacher.commit(cfg, self.get_data_parallel_group())
        return outputs

    def forward_backward_batch(self, data: TensorDict, loss_function, forward_only=False):
        self._overlap.expect(len(data))
        if not forward_only and tu.get_non_tensor_data(data, LOSS_KEY, default=None):
            count_tokens(data, self.get_data_parallel_group())
        return super().forward_backward_batch(data, loss_function, forward_only)

    def save_checkpoint(self, local_path: str, *args, **kwargs):
        super().save_checkpoint(local_path, *args, **kwargs)
        self._teacher.save(local_path)

    def load_checkpoint(self, local_path: str, *args, **kwargs):
        self._teacher.load(local_path)  # before verl's, which may delete the folder
        super().load_checkpoint(local_path, *args, **kwargs)

    def _build_module(self):
        with families.own_forward(self._backbone, self.model_config.hf_config.model_type):
            return families.layers_to_wrap(super()._build_module())

    def _build_lora_module(self, module):
        # verl draws new adapters from whatever the process's generator holds: no two LoRA runs would be the same.
        with torch.random.fork_rng():
            torch.manual_seed(self.engine_config.seed)
            return super()._build_lora_module(module)

    def initialize(self):
        super().initialize()
        families.open_read_embeddings(self.module)

    def prepare_model_inputs(self, micro_batch: TensorDict):
        inputs = micro_batch.get("multi_modal_inputs", None)
        if inputs is None:
            return super().prepare_model_inputs(micro_batch)
        # verl concatenates features of one size only.
        model_inputs, output_args = super().prepare_model_inputs(micro_batch.exclude("multi_modal_inputs"))
        ids = model_inputs["input_ids"]
        model_inputs |= families.collate_features(self._backbone, [wire.payload(item) for item in inputs], ids.device)
        model_inputs |= families.token_types(self._backbone, self.model_config.hf_config, ids)
        return model_inputs, output_args

    def forward_step(self, micro_batch: TensorDict, loss_function, forward_only: bool):
        loss_request = None if forward_only else tu.get_non_tensor_data(micro_batch, LOSS_KEY, default=None)
        if loss_request:
            builder = self._builder(json.loads(loss_request)["method"])
            readout, plans = self._readout(builder.cfg), self._plan(micro_batch, builder)
            step = super().forward_step
            return taught_step(micro_batch, plans, readout, self.ulysses_parallel_group, step, loss_function)
        request = tu.get_non_tensor_data(micro_batch, REQUEST_KEY, default=None) if forward_only else None
        if not request:
            return super().forward_step(micro_batch, loss_function, forward_only)
        parsed = json.loads(request)
        if parsed["method"] is None:
            loss, output = super().forward_step(micro_batch, loss_function, forward_only)
            output["model_output"].update(notes(micro_batch))
            return loss, output
        started = time.perf_counter()
        builder = self._builder(parsed["method"])
        plans = self._plan(micro_batch, builder)
        seconds = time.perf_counter() - started
        requests = [plan.request for plan in plans if plan.request is not None]
        group = self.ulysses_parallel_group
        with ExitStack() as stack:
            reading = stack.enter_context(self._readout(builder.cfg).reading(requests, head_group=group))
            answer = self._answer_reading(micro_batch, builder) if parsed.get("answer") else None
            if answer is not None:
                stack.enter_context(answer.reading(self.module))
            loss, output = super().forward_step(micro_batch, loss_function, forward_only)
        if answer is not None:
            output["model_output"].update(answers(micro_batch, answer.shares(), builder))
        rows = on_cpu(reading.rows())
        seconds += reading.total_seconds()

        @torch.no_grad()  # of its own in every thread
        def reduce() -> dict:
            return self._reduce(micro_batch, builder, plans, rows, seconds, parsed)

        self._overlap.submit(len(micro_batch), output["model_output"], reduce)
        return loss, output

    def _reduce(
        self,
        micro_batch: TensorDict,
        builder: EvidenceBuilder,
        plans: Sequence[EvidencePlan],
        rows: Sequence[Tensor],
        seconds: float,
        request: Mapping,
    ) -> dict:
        """What the rows of a micro-batch come to, by name; ``seconds``: what they have cost so far."""
        started = time.perf_counter()
        evidences = builder.reduce(plans, rows)
        seconds += time.perf_counter() - started
        outputs = self._outputs(evidences, plans, seconds, request["detail"])
        if "attention_loss" in request:
            cfg = AttentionLossConfig(**request["attention_loss"])
            outputs |= self._teacher.maps(micro_batch, plans, rows, cfg)
        return outputs | verdicts(micro_batch, evidences, builder) | notes(micro_batch)

    def get_per_tensor_param(self, *args, **kwargs):
        params, peft_config = super().get_per_tensor_param(*args, **kwargs)
        params = weights.renamed(params, self.module)
        if peft_config is not None or self._qat_enabled:  # vLLM's own adapter, or quantized: not plain weights
            return params, peft_config
        return weights.for_rollout(params, self.rollout_dtype), None

    def get_per_tensor_param_shard(self, **kwargs):
        if self.model_config.lora_rank > 0:
            raise UserError(
                "actor_rollout_ref.rollout.checkpoint_engine.backend = delta_sharded sends a LoRA run's base weights "
                "without the adapter. Allowed: naive, nccl and the others that send whole weights."
            )
        return super().get_per_tensor_param_shard(**kwargs)

    def _merged_lora_per_tensor_param(self):
        return weights.merged(self)

    def _builder(self, method: Mapping) -> EvidenceBuilder:
        key = json.dumps(method, sort_keys=True)
        if key not in self._builders:
            tokenizer = self.model_config.tokenizer
            self._builders[key] = EvidenceBuilder(
                self.model_config.hf_config, tokenizer, MethodConfig.from_dict(method)
            )
        return self._builders[key]

    def _readout(self, cfg: MethodConfig) -> AttentionReadout:
        of = cfg.readout
        key = (of.layers, of.heads, of.max_bytes, of.kernel)
        if key not in self._readouts:
            self._readouts[key] = AttentionReadout(
                self.module, of.layers, of.max_bytes, families.verl_sites(), of.kernel, of.heads
            )
        return self._readouts[key]

    def _answer_reading(self, micro_batch: TensorDict, builder: EvidenceBuilder) -> AnswerReading:
        """P(yes) of each sample, read at the token before its answer."""
        prompts, responses, tokens = sequence_lengths(micro_batch["prompts"]), micro_batch["responses"].unbind(), []
        for prompt_length, ids, (row, first) in zip(prompts, responses, _places(micro_batch), strict=True):
            at = answer_at(builder.tokenizer, ids.tolist(), builder.cfg.spans)
            tokens.append(None if at is None else (row, first + prompt_length + at - 1))
        return AnswerReading(builder.tokenizer, tokens, self.ulysses_parallel_group)

    def _plan(self, micro_batch: TensorDict, builder: EvidenceBuilder) -> list[EvidencePlan]:
        prompts, sequences = sequence_lengths(micro_batch["prompts"]), micro_batch["input_ids"].unbind()
        inputs = micro_batch.get("multi_modal_inputs", None)
        multi_modal = [wire.payload(item) or {} for item in inputs] if inputs is not None else [{}] * len(prompts)
        return [
            _plan_or_refuse(builder, ids, prompt_length, outputs, place)
            for ids, prompt_length, outputs, place in zip(
                sequences, prompts, multi_modal, _places(micro_batch), strict=True
            )
        ]

    @staticmethod
    def _outputs(
        evidences: Sequence[Evidence], plans: Sequence[EvidencePlan], seconds: float, detail: bool
    ) -> dict[str, Tensor]:
        share = 1e3 * seconds / len(evidences)
        outputs = {wire.SUMMARY: wire.jagged([wire.pack_summary(e, share) for e in evidences])}
        if detail:
            packed = [wire.pack_detail(e, plan.reasoning) for e, plan in zip(evidences, plans, strict=True)]
            outputs |= {name: wire.jagged([vectors[name] for vectors in packed]) for name in wire.DETAIL}
        return outputs


def _places(micro_batch: TensorDict) -> list[tuple[int, int]]:
    """(row, first token) of each sample, where ``prepare_model_inputs`` puts it on the forward's token axis."""
    lengths = sequence_lengths(micro_batch["input_ids"])
    if not tu.get_non_tensor_data(micro_batch, "use_remove_padding", default=True):
        return [(row, 0) for row in range(len(lengths))]
    return [(0, first) for first in accumulate(lengths[:-1], initial=0)]


def _plan_or_refuse(
    builder: EvidenceBuilder, ids: Tensor, prompt_length: int, outputs: Mapping, place: tuple[int, int]
) -> EvidencePlan:
    """A sample that the backbone refuses (video, image and prompt that do not fit) costs its evidence, not the step."""
    try:
        return builder.plan(ids, prompt_length, outputs, batch_row=place[0], offset=place[1])
    except UserError as error:
        logger.warning("no evidence for a sample: %s", error)
        return EvidencePlan(None, None, 0, [], "refused")


note(f"engine {ENGINE}")
