"""Pictures of a training run: image, anomaly map, answer and shaded reasoning of a few samples, every N steps.

Always written under ``realad.log.dir`` as ``step_000010/00.json`` beside ``00.png``; to W&B too where it is a logger.
Where a step has several mini-batches (cgro_separate_async) each has a folder of its own, ``step_000010.0`` and so on.
``validation_000010`` holds those of a validation, of the same images each time.
"""

# verl's classes, TensorDict fields and jagged tensors are untyped for pyright; the tests run them for real.
# pyright: reportArgumentType=false

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig
from PIL import Image
from transfer_queue import KVBatchMeta

from realad_verl.backbones.pieces import token_pieces
from realad_verl.method.labels import read_label
from realad_verl.method.spans import parse_response
from realad_verl.verl_ext.settings import RealadSettings
from realad_verl.verl_ext.train import wire
from realad_verl.verl_ext.train.metrics import ScoredSample


class SampleLogger:
    """Writes ``realad.log.samples`` samples of every ``realad.log.every``-th step, of both classes."""

    def __init__(self, config: DictConfig, settings: RealadSettings):
        self.settings = settings
        self.wandb = "wandb" in (config.trainer.logger or [])
        root = Path(settings.log.dir)
        self.dir = root if root.is_absolute() else Path(config.trainer.default_local_dir) / root

    def due(self, step: int) -> bool:
        """Whether step ``step`` is logged."""
        log = self.settings.log
        return bool(log.every and log.samples) and step % log.every == 0

    @property
    def of_validation(self) -> bool:
        """Whether validations are logged."""
        return bool(self.settings.log.every and self.settings.log.samples)

    def log(self, trainer, batch: KVBatchMeta, samples: Sequence[ScoredSample]) -> None:
        """Write the chosen samples of ``batch`` (aligned with ``samples``), where its step is due."""
        if self.due(trainer.global_steps):
            update = f".{trainer.local_trigger_step}" if trainer.parameter_sync_step > 1 else ""
            self._write(trainer, batch, samples, self.dir / f"step_{trainer.global_steps:06d}{update}", "evidence")

    def log_validation(self, trainer, batch: KVBatchMeta, samples: Sequence[ScoredSample]) -> None:
        """Write those of a validation: of the same images each time, since ``batch`` is in the data's order."""
        folder = self.dir / f"validation_{trainer.global_steps:06d}"
        if not folder.exists():  # only the first part of a validation set that comes in several
            self._write(trainer, batch, samples, folder, "val")

    def _write(self, trainer, batch: KVBatchMeta, samples: Sequence[ScoredSample], folder: Path, group: str) -> None:
        chosen = self._choose(batch, samples)
        fields = [*wire.DETAIL, "responses", "raw_prompt", "extra_info"]
        keys = [batch.keys[i] for i in chosen]
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=fields)
        folder.mkdir(parents=True, exist_ok=True)
        records = []
        for n, i in enumerate(chosen):
            record = self._record(trainer, data, n, samples[i])
            image = _image(data["raw_prompt"][n])
            if image is not None:
                record["image"] = f"{n:02d}.png"
                image.save(folder / record["image"])
            (folder / f"{n:02d}.json").write_text(json.dumps(record, indent=1))
            records.append((record, image))
        if self.wandb:
            self._log_to_wandb(trainer, records, group)

    def _choose(self, batch: KVBatchMeta, samples: Sequence[ScoredSample]) -> list[int]:
        """The first sample of each prompt, anomalous and normal in turn, then further samples."""
        seen: dict[str, int] = {}
        ranked = []
        for i, (key, tag) in enumerate(zip(batch.keys, batch.tags, strict=True)):
            if tag.get("is_padding", False):
                continue
            uid = key.rsplit("_", 2)[0]
            seen[uid] = seen.get(uid, 0) + 1
            ranked.append((seen[uid], i))
        by_class: dict[int | None, list[int]] = {}
        for _, i in sorted(ranked):
            by_class.setdefault(samples[i].label, []).append(i)
        interleaved = [i for turn in _turns(list(by_class.values())) for i in turn]
        return interleaved[: self.settings.log.samples]

    def _record(self, trainer, data, n: int, sample: ScoredSample) -> dict[str, Any]:
        """One sample as plain data, with the field names of ``realad evaluate``'s results."""
        detail = wire.unpack_detail(data["evidence_map"][n], data["evidence_tokens"][n])
        pieces = token_pieces(trainer.tokenizer, data["responses"][n].tolist())
        response = trainer.tokenizer.decode(data["responses"][n], skip_special_tokens=True)
        parsed = parse_response(response, self.settings.method.spans)
        info = wire.payload(data["extra_info"][n]) or {}
        tokens = [
            {"text": pieces[int(index)], "s_t": s_t, "s_i": s_i, "weight": weight, "kept": bool(kept)}
            for index, s_t, s_i, weight, kept in detail.tokens.T.tolist()
        ]
        return {
            "id": str(info.get("id", "")),
            "category": str(info.get("category", "")),
            "gt_label": sample.label,
            "step": trainer.global_steps,
            "answer": parsed.answer,
            "pred_label": read_label(parsed.answer),
            "response": response,
            "response_ids": data["responses"][n].tolist(),
            "reasoning": parsed.reasoning,
            "well_formed": parsed.well_formed,
            "problem": sample.summary.problem,
            "jaccard": sample.summary.jaccard,
            "n_kept": sample.summary.n_kept,
            "fallback": sample.summary.fallback,
            "tokens": tokens,
            "grid_map": detail.map_HW.tolist() if detail.map_HW is not None else None,
            "reward": {**sample.other, "consistency_reward": sample.consistency, "total": sample.total},
        }

    def _log_to_wandb(self, trainer, records, group: str) -> None:
        import wandb

        from realad_verl.report.overlay import overlay

        images = [
            wandb.Image(
                overlay(image, record["grid_map"]) if record["grid_map"] is not None else image,
                caption=f"label {record['gt_label']}, answer {record['answer']}, J {record['jaccard']}",
            )
            for record, image in records
            if image is not None
        ]
        columns = ["id", "gt_label", "answer", "jaccard", "reasoning", "tokens"]
        table = wandb.Table(columns=columns)
        for record, _ in records:
            weights = " ".join(f"{t['text'].strip()}:{t['weight']:.2f}" for t in record["tokens"])
            table.add_data(*(record[c] for c in columns[:-1]), weights)
        trainer.logger.logger["wandb"].log(
            {f"{group}/samples": images, f"{group}/reasoning": table}, step=trainer.global_steps
        )


def _turns(groups: list[list[int]]) -> list[list[int]]:
    longest = max((len(g) for g in groups), default=0)
    return [[g[k] for g in groups if k < len(g)] for k in range(longest)]


def _image(raw_prompt) -> Image.Image | None:
    """The image of a chat prompt as verl's dataset built it."""
    messages = wire.payload(raw_prompt)
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and part.get("type") == "image":
                image = part.get("image")
                if isinstance(image, Image.Image):
                    return image.convert("RGB")
                if part.get("bytes"):
                    return Image.open(io.BytesIO(part["bytes"])).convert("RGB")
    return None
