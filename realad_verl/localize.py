"""Image in; decision, score, reasoning and anomaly map out.

    localizer = Localizer.from_pretrained("path/to/model")
    result = localizer(image)

A response is generated greedily; its attention and the answer's probability are read as it is generated. ``explain`` is
for responses made elsewhere: one teacher-forced forward, as in training (``realad_verl.evidence``). It also serves what
the steps of a generation do not tell: a response without an answer, a cache that drops keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, overload

import torch
from PIL import Image
from torch import Tensor

from realad_verl.attention.generation import reading_generation
from realad_verl.attention.readout import AttentionReadout
from realad_verl.backbones import backbone_for
from realad_verl.backbones.answers import GenerationScores, answer_ids, yes_share
from realad_verl.backbones.base import placeholder_ids
from realad_verl.backbones.inputs import PromptInputs, chat_text, collate, prepare
from realad_verl.data.depth import Depth
from realad_verl.data.images import ImageSource, load_image
from realad_verl.data.prompts import hf_messages
from realad_verl.errors import UserError, bad_value
from realad_verl.evidence import EvidenceBuilder, EvidencePlan
from realad_verl.localization import Localization, TokenEvidence, localization
from realad_verl.method.config import MethodConfig
from realad_verl.method.evidence import Evidence
from realad_verl.method.labels import read_label
from realad_verl.method.spans import answer_token, opened_spans, parse_response
from realad_verl.models import load_model

__all__ = ["Localization", "Localizer", "TokenEvidence"]


@dataclass(frozen=True)
class _Sequence:
    """One prompt and response; ``answer``: index of the response token that begins the answer, None without one."""

    prompt: PromptInputs
    response: Tensor
    plan: EvidencePlan
    answer: int | None


class Localizer:
    """A model, its processor and the settings of the method."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        method: MethodConfig | None = None,
        max_new_tokens: int = 256,
        question: str | None = None,
        white: float | None = None,
    ) -> None:
        """``question``: the user turn's text; default: the paper's question and our format instruction. ``white``: of
        images of more than 8 bits, the pixel value that becomes white; default: each by itself, with a warning.

        Raises UserError for a model family without a backbone entry and a processor without a chat template.
        """
        if max_new_tokens < 1:
            raise bad_value("max_new_tokens", max_new_tokens, "a whole number >= 1")
        self.model = model.eval()
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.method = method if method is not None else MethodConfig()
        self.max_new_tokens = max_new_tokens
        self.depth = None if white is None else Depth(0.0, white)
        self.backbone = backbone_for(model.config)
        self.text = chat_text(processor, hf_messages(question))
        self.method = replace(self.method, spans=opened_spans(self.method.spans, self.text))
        self.builder = EvidenceBuilder(model.config, self.tokenizer, self.method)
        of = self.method.readout
        self.readout = AttentionReadout(model, of.layers, of.max_bytes, kernel=of.kernel, heads=of.heads)
        self.answer_ids = answer_ids(self.tokenizer)
        self._reserved = sorted(placeholder_ids(model.config))

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        method: MethodConfig | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        max_new_tokens: int = 256,
        trust_remote_code: bool = False,
        white: float | None = None,
    ) -> Self:
        """Loads a model and its processor from a folder or by its hub id.

        ``dtype``: default float32 on CPU, bfloat16 elsewhere. Raises UserError where it cannot be loaded, is of no
        known family, or lacks weights (realad_verl.models).
        """
        target = _device(device)
        precision = dtype or (torch.float32 if target.type == "cpu" else torch.bfloat16)
        loaded, processor = load_model(model, precision, trust_remote_code)
        return cls(loaded.to(target), processor, method=method, max_new_tokens=max_new_tokens, white=white)

    @overload
    def __call__(self, images: ImageSource) -> Localization: ...
    @overload
    def __call__(self, images: Sequence[ImageSource]) -> list[Localization]: ...
    def __call__(self, images: ImageSource | Sequence[ImageSource]) -> Localization | list[Localization]:
        """One result for one image, a list for a sequence; a sequence is one batch.

        An image is a path, an image of Pillow or an array; all are read as `realad localize` reads a file
        (``realad_verl.data.images.load_image``).
        """
        if isinstance(images, ImageSource):
            return self([images])[0]
        if not images:
            return []
        images = [load_image(image, self.depth) for image in images]
        prompts = [prepare(self.processor, self.text, image) for image in images]
        return self._localize(images, prompts)

    def sample(self, images: Sequence[ImageSource], n: int) -> list[list[int]]:
        """``n`` responses to each image at temperature 1, those of an image side by side; torch's own seed counts."""
        prompts = [prepare(self.processor, self.text, load_image(image, self.depth)) for image in images]
        # Not `num_return_sequences`: it repeats tiles and packed patches one by one, so copies see others' pixels.
        copies = [prompt for prompt in prompts for _ in range(n)]
        return self._generate(copies, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)

    def label_of(self, response_ids: Sequence[int]) -> int | None:
        """What a sampled response answers: 1 anomalous, 0 normal, None where there is no such answer."""
        text = self.tokenizer.decode(list(response_ids), skip_special_tokens=True)
        return read_label(parse_response(text, self.method.spans).answer)

    def explain(self, images: Sequence[ImageSource], response_ids: Sequence[Sequence[int]]) -> list[Localization]:
        """Results for responses generated elsewhere (vLLM), by one teacher-forced forward; one response an image.

        Placeholders of images that a response has sampled are fed as padding: the model would want pixels for them.
        """
        if len(images) != len(response_ids):
            raise UserError(
                f"{len(images)} images but {len(response_ids)} responses; give one response for each image."
            )
        if not images:
            return []
        images = [load_image(image, self.depth) for image in images]
        prompts = [prepare(self.processor, self.text, image) for image in images]
        return self._explain(images, prompts, response_ids)

    @torch.no_grad()
    def _localize(self, images: Sequence[Image.Image], prompts: Sequence[PromptInputs]) -> list[Localization]:
        """Generates and reads in one pass; what the steps do not tell is read by a forward of its own."""
        scores = GenerationScores(self._reserved, self.answer_ids)
        with reading_generation(self.readout, [len(prompt.input_ids) for prompt in prompts]) as reading:
            responses = self._generate(prompts, scores)
        sequences = [self._sequence(i, prompts[i], ids) for i, ids in enumerate(responses)]
        told = [
            i
            for i, s in enumerate(sequences)
            if s.answer is not None and (s.plan.request is None or reading.has(s.plan.request))
        ]
        requests = [request for i in told if (request := sequences[i].plan.request) is not None]
        rows = reading.read(requests)
        if rows is None:
            return self._explain(images, prompts, responses)
        evidence = self.builder.reduce([sequences[i].plan for i in told], rows)
        results = {}
        for i, found in zip(told, evidence, strict=True):
            s = sequences[i]
            assert s.answer is not None
            results[i] = self._result(images[i], s.plan, found, scores.share(i, s.answer))
        rest = [i for i in range(len(images)) if i not in results]
        if rest:
            others = self._explain([images[i] for i in rest], [prompts[i] for i in rest], [responses[i] for i in rest])
            results |= dict(zip(rest, others, strict=True))
        return [results[i] for i in range(len(images))]

    @torch.no_grad()
    def _generate(
        self,
        prompts: Sequence[PromptInputs],
        scores: GenerationScores | None = None,
        do_sample: bool = False,
        **sampling: Any,
    ) -> list[list[int]]:
        """Responses, greedy by default, each up to and with its end token; ``scores`` sees every step."""
        batch = self._batch(prompts, [torch.empty(0, dtype=torch.long)] * len(prompts), "left")
        config = type(self.model.generation_config)(
            do_sample=do_sample,
            **sampling,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=self.model.generation_config.eos_token_id,
            pad_token_id=self._pad_id,
        )
        processors = [scores or GenerationScores(self._reserved)]
        output = self.model.generate(**batch, generation_config=config, logits_processor=processors)
        generated = output[:, batch["input_ids"].shape[1] :].tolist()
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        stops = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in generated]
        return [row[:stop] for row, stop in zip(generated, stops, strict=True)]

    @torch.no_grad()
    def _explain(
        self, images: Sequence[Image.Image], prompts: Sequence[PromptInputs], response_ids: Sequence[Sequence[int]]
    ) -> list[Localization]:
        sequences = [self._sequence(i, prompts[i], list(ids)) for i, ids in enumerate(response_ids)]
        tails = [self._tail(sequence) for sequence in sequences]
        batch = self._batch(prompts, tails, "right")
        # The position that predicts the answer, by sequence.
        score_at = [
            len(s.prompt.input_ids) + (len(tail) if s.answer is None else s.answer) - 1
            for s, tail in zip(sequences, tails, strict=True)
        ]
        wanted = sorted(set(score_at))
        requests = [s.plan.request for s in sequences if s.plan.request is not None]
        with self.readout.reading(requests) as reading:
            positions = torch.tensor(wanted, device=self.model.device)
            logits_BKV = self.model(**batch, logits_to_keep=positions, use_cache=False).logits
        if logits_BKV.shape[1] != len(wanted):  # a forward that takes the option and keeps all (MiniCPM-V)
            logits_BKV = logits_BKV[:, positions]
        evidence = self.builder.reduce([s.plan for s in sequences], reading.rows())
        scores = [yes_share(logits_BKV[i, wanted.index(at)], self.answer_ids) for i, at in enumerate(score_at)]
        return [
            self._result(image, s.plan, found, score)
            for image, s, found, score in zip(images, sequences, evidence, scores, strict=True)
        ]

    def _result(self, image: Image.Image, plan: EvidencePlan, evidence: Evidence, score: float) -> Localization:
        return localization(image, plan.pieces, plan.reasoning, evidence, score, self.method.spans)

    def _sequence(self, index: int, prompt: PromptInputs, ids: list[int]) -> _Sequence:
        response, length = torch.tensor(ids, dtype=torch.long), len(prompt.input_ids)
        plan = self.builder.plan(torch.cat([prompt.input_ids, response]), length, prompt.image, batch_row=index)
        return _Sequence(prompt, response, plan, answer_token(plan.pieces, self.method.spans))

    def _tail(self, s: _Sequence) -> Tensor:
        """What the teacher-forced forward gets behind the prompt: the response, up to where an answer would begin."""
        # What is appended comes after every reasoning token, so their attention is the same with and without it.
        opened = self._opened_answer(s.plan.pieces) if s.answer is None else None
        tail = s.response if opened is None else torch.cat([_body(s.response, s.plan.pieces), opened])
        return tail.masked_fill(torch.isin(tail, torch.tensor(self._reserved)), self._pad_id)

    def _opened_answer(self, pieces: Sequence[str]) -> Tensor:
        """The tags that lead from a response without an answer to where one would be."""
        spans = self.method.spans
        problem = parse_response("".join(pieces), spans).problem
        unclosed = problem == "unclosed_think" or (problem == "empty" and spans.opened_by_template is True)
        text = (spans.think_close if unclosed else "") + spans.answer_open
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False), dtype=torch.long)

    def _batch(self, prompts: Sequence[PromptInputs], responses: Sequence[Tensor], side: Any) -> dict[str, Tensor]:
        batch = collate(prompts, responses, self._pad_id, side, self.backbone)
        moved = {key: value.to(self.model.device) for key, value in batch.items()}
        return {key: v.to(self.model.dtype) if v.is_floating_point() else v for key, v in moved.items()}

    @property
    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise bad_value("device", name, "cpu, cuda, cuda:0, mps, ...") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise bad_value("device", name, "cpu (this machine has no usable CUDA device)")
    return device


def _body(response: Tensor, pieces: Sequence[str]) -> Tensor:
    """The response without the special tokens at its end."""
    return response[: max((i + 1 for i, piece in enumerate(pieces) if piece), default=0)]
