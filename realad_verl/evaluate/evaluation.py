"""One run of ``realad evaluate``, from what was asked for to results.json."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from realad_verl.data.datasets import Dataset, Sample, get_dataset
from realad_verl.data.decode import content_sha256
from realad_verl.data.depth import Depth, find_depth
from realad_verl.data.files import written
from realad_verl.data.images import UnreadableImage, deep_extremes, load_image
from realad_verl.data.manifest import read_hashes
from realad_verl.data.masks import MaskSetting
from realad_verl.data.parallel import ordered_map
from realad_verl.errors import UserError
from realad_verl.evaluate.engines import Engine, build_engine, choose_engine, model_identity
from realad_verl.evaluate.runner import evaluate_samples, finish, found_files, limited, pending, read_references
from realad_verl.evaluate.store import ResultStore, parse_shard
from realad_verl.evaluate.summary import SummaryConfig
from realad_verl.method.config import MethodConfig

VLLM_SHARE = {"cpu": 0.15}  # of the device's memory; elsewhere 0.5


@dataclass(frozen=True)
class Evaluation:
    """A model on a data set. The fields are the command's options; making one checks them and opens the store.

    ``split`` None: the data set's test split. ``image_size`` None: images as they are. ``shard``: "I/N", None for all.
    ``against``: manifests of `realad prepare`, none of whose images may be among these; ``drop_overlap`` leaves those
    that are out. ``gpu_memory``: vLLM's share of the device's memory. ``samples_per_image``: answers
    drawn at temperature 1 beside the greedy one, for ``sampled_acc``.
    """

    dataset: str
    root: Path
    model: str
    out: Path
    split: str | None = None
    limit: int | None = None
    image_size: int | None = 420
    batch_size: int = 8
    engine: str = "auto"
    device: str = "cpu"
    gpu_memory: float | None = None
    max_new_tokens: int = 256
    samples_per_image: int = 0
    method: MethodConfig = field(default_factory=MethodConfig)
    shard: str | None = None
    mask_levels: str = "auto"
    white: float | None = None
    summary: SummaryConfig = field(default_factory=SummaryConfig)
    against: tuple[Path, ...] = ()
    drop_overlap: bool = False
    references: Path | None = None
    sbert_model: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        MaskSetting(self.mask_levels)
        _ = self.part, self.texts, choose_engine(self.engine), self.samples
        self._refuse_known()
        _ = self.store

    @cached_property
    def part(self) -> tuple[int, int]:
        """Which shard of how many."""
        return parse_shard(self.shard)

    @cached_property
    def texts(self) -> dict[str, str] | None:
        """Reference reasoning by sample id."""
        return read_references(self.references) if self.references else None

    @property
    def source(self) -> Dataset:
        """The data set."""
        return get_dataset(self.dataset)

    @cached_property
    def everything(self) -> list[Sample]:
        """The images of all splits."""
        return list(self.source.samples(self.root))

    @cached_property
    def in_split(self) -> list[Sample]:
        """The images of the split, less those of ``against`` where these are dropped."""
        samples = list(self.source.of_split(self.everything, self.split or self.source.test_split))
        if not self.drop_overlap:
            return samples
        known = {sample.id for sample, _ in self._known(samples)}
        if len(known) == len(samples):
            raise UserError(f"--drop-overlap: all {len(samples)} images are among those of --against; none is left.")
        return [sample for sample in samples if sample.id not in known]

    @cached_property
    def samples(self) -> list[Sample]:
        """The images of the whole run, all shards."""
        return limited(self.in_split, self.limit)

    @cached_property
    def depth(self) -> Depth | None:
        """How images of more than 8 bits are shown; None where there are none."""
        return find_depth([sample.path for sample in self.everything], deep_extremes, self.white, _cores())

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What a row depends on: the store refuses rows of other settings in the same folder."""
        return {
            "dataset": self.dataset,
            "root": written(self.root.resolve()),
            "split": self.split or self.source.test_split,
            **model_identity(self.model),
            "engine": choose_engine(self.engine),
            "image_size": self.image_size or "as it is",
            **({} if self.depth is None else {"depth": self.depth.to_dict()}),
            "max_new_tokens": self.max_new_tokens,
            **({"samples_per_image": self.samples_per_image} if self.samples_per_image else {}),
            "method": self.method.to_dict(),
        }

    @cached_property
    def store(self) -> ResultStore:
        """The folder of the run."""
        return ResultStore(self.out, self.settings)

    @property
    def of_this_shard(self) -> list[Sample]:
        """The images of this shard, done or not."""
        return pending(self.samples, set(), self.part)

    @property
    def todo(self) -> list[Sample]:
        """The images of this shard that have no row yet."""
        return pending(self.samples, self._done(), self.part)

    @property
    def missing(self) -> int:
        """How many images of the whole run have no row."""
        return len(self.samples) - len(self._done() & {sample.id for sample in self.samples})

    def answer(self, on_image: Callable[[], None] = lambda: None) -> None:
        """Write the rows that are missing in this shard; the model is loaded only where there are any."""
        todo = self.todo
        if todo:
            evaluate_samples(
                todo,
                self._engine(),
                self.store,
                self.root,
                image_size=self.image_size,
                depth=self.depth,
                batch_size=self.batch_size,
                shard=self.part,
                samples_per_image=self.samples_per_image,
                on_image=on_image,
            )

    def finish(self, on_image: Callable[[], None] = lambda: None, **extra: Any) -> dict[str, Any] | None:
        """Write and return results.json once every image of all shards has a row; None before."""
        extra |= {"dataset": self.dataset, "split": self.settings["split"], "limit": self.limit}
        extra |= {"settings": self.settings, "n_in_split": len(self.in_split)}
        if self.drop_overlap:
            extra["against"] = [written(path.resolve()) for path in self.against]
        extra |= found_files(self.source, self.root, self.everything, self.samples, self.store.rows())
        return finish(
            self.samples,
            self.store,
            self.summary,
            mask_setting=MaskSetting(self.mask_levels),
            references=self.texts,
            sbert_model=self.sbert_model,
            extra=extra,
            workers=_cores(),
            on_image=on_image,
        )

    def _refuse_known(self) -> None:
        """UserError where an image is, by its content, one of those in ``against``."""
        found = [] if self.drop_overlap else self._known(self.samples)
        if found:
            (first, known_as), *_ = found
            raise UserError(
                f"--against: {len(found)} of {len(self.samples)} images were prepared for training, as {first.id} "
                f"({known_as}): their figures say nothing about images that the model has not seen. Leave them out "
                "with --drop-overlap, evaluate other images, or prepare the training data with --against of these."
            )

    def _known(self, samples: list[Sample]) -> list[tuple[Sample, str]]:
        """Those that ``against`` holds, and as what."""
        known = read_hashes(self.against)
        if not known:
            return []
        digests = ordered_map(self._digest, samples, _cores())
        return [(sample, known[d]) for sample, d in zip(samples, digests, strict=True) if d in known]

    def _digest(self, sample: Sample) -> str | None:
        """What a manifest knows an image by: its pixels at full size. None where it cannot be read."""
        try:
            return content_sha256(load_image(sample.path, self.depth))
        except UnreadableImage:
            return None

    def _done(self) -> set[str]:
        return {row["id"] for row in self.store.rows()}

    def _engine(self) -> Engine:
        from realad_verl.localize import Localizer

        localizer = Localizer.from_pretrained(
            self.model,
            device=self.device,
            method=self.method,
            max_new_tokens=self.max_new_tokens,
            trust_remote_code=self.trust_remote_code,
        )
        return build_engine(
            self.settings["engine"],
            localizer,
            self.model,
            batch_size=self.batch_size,
            gpu_memory=self.gpu_memory or VLLM_SHARE.get(self.device, 0.5),
            image_size=self.image_size,
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0))
