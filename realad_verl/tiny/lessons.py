"""What the tiny backbone is taught: for each image, where a defect is and two wordings of a caption, in one sequence.

    image | places asked | places told | the fixed prompt | caption 1 | caption 2

The parts after the image are separate conversations that share it: `attention_mask` keeps them apart, and each counts
its positions from the end of the image, as if it stood there alone. One forward then teaches three answers for little
more than the cost of one, since the image is most of the tokens.

Letters: B samples, T tokens of the whole sequence, L its length without the image prefix.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLProcessor

from realad_verl.data.procedural import ProceduralDefects, ProceduralSample
from realad_verl.data.procedural.captions import (
    PLACE_QUESTION,
    PLACES,
    SIZES,
    SOURCE_DEFECTS,
    SOURCE_SURFACES,
    TONES,
    place_answers,
    reasoning,
    response,
)
from realad_verl.data.prompts import hf_messages
from realad_verl.tiny.arch import GRID, IMAGE_SIZE, PATCH

# The words that the image decides: facts, answers, and the first words, at which a normal and an anomalous text part.
INFORMATIVE = {word for phrase in (*SOURCE_DEFECTS, *TONES, *SIZES, *sum(PLACES, ())) for word in phrase.split()}
INFORMATIVE |= {"yes", "no", "There", "A", "At", "I", "The", "No", "All"}
PLACE_TOKENS, CAPTION_TOKENS = 40, 34  # room for each answer; longer ones would be cut, which `Lessons` refuses
NAMES = (*SOURCE_SURFACES, *SOURCE_DEFECTS)  # what an image token can be called
PATCH_SHARE = 0.05  # of a patch that a defect must cover to name it; a scratch covers about a tenth
PLACES_ASKED, PLACES_TOLD, PROMPT, CAPTION_1, CAPTION_2 = range(1, 6)  # parts; 0 is the image prefix


def to_patches(images: Tensor, processor: Qwen2_5_VLProcessor) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B * cells, 1176], as the image processor lays them out; sides divide by 14."""
    mean, std = (torch.tensor(getattr(processor.image_processor, name)) for name in ("image_mean", "image_std"))
    x = ((images / 255) - mean) / std
    x = x.view(len(x), x.shape[1] // PATCH, PATCH, x.shape[2] // PATCH, PATCH, 3).permute(
        0, 1, 3, 5, 2, 4
    )  # B, row, column, RGB, y, x
    return x.unsqueeze(4).expand(-1, -1, -1, -1, 2, -1, -1).reshape(-1, 3 * 2 * PATCH * PATCH)


def prompt_ids(processor: Qwen2_5_VLProcessor, question: str | None = None, grid: int = GRID) -> list[int]:
    """Token ids of a prompt (the fixed one, or another question) with its ``grid`` x ``grid`` image tokens."""
    text = str(processor.apply_chat_template(hf_messages(question), add_generation_prompt=True, tokenize=False))
    pad = "<|image_pad|>"
    return processor.tokenizer(text.replace(pad, pad * grid**2)).input_ids


@dataclass(frozen=True)
class Sheet:
    """The fixed layout of a lesson's sequence.

    Attributes:
        prefix: ids up to the end of the image; ``place_question`` and ``prompt``: ids that follow it.
        part_T: which part each token belongs to.
        position_T: how many tokens of its own conversation stand between the image and the token; -1 in the prefix.
        attention_mask: bool [1, 1, T, T], True where a token sees another.
    """

    prefix: list[int]
    place_question: list[int]
    prompt: list[int]
    part_T: Tensor
    position_T: Tensor
    attention_mask: Tensor


def lesson_sheet(processor: Qwen2_5_VLProcessor, grid: int = GRID) -> Sheet:
    """Lay out a lesson whose image has ``grid`` x ``grid`` tokens."""
    full, asked = prompt_ids(processor, grid=grid), prompt_ids(processor, PLACE_QUESTION, grid)
    end = full.index(processor.tokenizer.convert_tokens_to_ids("<|vision_end|>")) + 1
    prefix, prompt, question = full[:end], full[end:], asked[end:]
    lengths = (len(prefix), len(question), PLACE_TOKENS, len(prompt), CAPTION_TOKENS, CAPTION_TOKENS)
    part_T = torch.repeat_interleave(torch.arange(6), torch.tensor(lengths))
    starts = (0, 0, len(question), 0, len(prompt), len(prompt))
    position_T = torch.cat([torch.arange(n) + start for n, start in zip(lengths, starts, strict=True)])
    position_T[part_T == 0] = -1
    sees = torch.zeros(6, 6, dtype=torch.bool)
    for part, others in enumerate(((0,), (0,), (0, PLACES_ASKED), (0,), (0, PROMPT), (0, PROMPT))):
        sees[part, [part, *others]] = True
    mask = sees[part_T][:, part_T] & torch.ones(len(part_T), len(part_T), dtype=torch.bool).tril()
    return Sheet(prefix, question, prompt, part_T, position_T, mask[None, None])


class Lessons(Dataset):
    """Item i: image uint8 [H, W, 3], ids after the image prefix [L], and the loss weight of each as a target [L].

    The last tensor [144] is what each image token shows, see `patch_names`.

    Args:
        seed: of the procedural images and of the wordings.
        length: number of items.
        informative_weight: loss weight of the words that the image decides; the others have 1.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sheet: Sheet,
        *,
        seed: int,
        length: int,
        informative_weight: float = 3.0,
    ):
        self.samples = ProceduralDefects(IMAGE_SIZE, "source", seed)
        self.tokenizer, self.sheet, self.seed, self.length = tokenizer, sheet, seed, length
        self.place_weights = {"yes": informative_weight, "no": 1.0}
        self.caption_weights = dict.fromkeys(INFORMATIVE, informative_weight)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, index, 1])
        sample = self.samples[index]
        places = place_answers(touched_places(sample.mask), rng)
        captions = [response(reasoning(sample.facts, rng), sample.label) for _ in range(2)]
        parts = [
            (self.sheet.place_question, [0.0] * len(self.sheet.place_question)),
            self._answer(places, PLACE_TOKENS, self.place_weights, 0.1),
            (self.sheet.prompt, [0.0] * len(self.sheet.prompt)),
            *(self._answer(caption, CAPTION_TOKENS, self.caption_weights, 1.0) for caption in captions),
        ]
        ids, weights = (sum(column, []) for column in zip(*parts, strict=True))
        return torch.from_numpy(sample.image), torch.tensor(ids), torch.tensor(weights), self._names(sample)

    @staticmethod
    def _names(sample: ProceduralSample) -> Tensor:
        return patch_names(sample.surface, [(sample.defect_type, sample.mask)] if sample.defect_type else [])

    def _answer(self, text: str, room: int, weights: dict[str, float], other: float) -> tuple[list[int], list[float]]:
        """Ids of the answer and their loss weights, filled up to ``room``."""
        ids = self.tokenizer(text).input_ids + [self.tokenizer.eos_token_id]
        assert len(ids) <= room, f"{len(ids)} tokens do not fit in {room}: {text}"
        each = [weights.get(str(self.tokenizer.decode([i])).strip(), other) for i in ids]
        return ids + [self.tokenizer.pad_token_id] * (room - len(ids)), each + [0.0] * (room - len(ids))


class NamingLessons(Dataset):
    """Item i: an image with several defects, uint8 [H, W, 3], and what each of its image tokens shows [144].

    A caption tells of one defect; a name needs no caption, and defects are what few image tokens of a lesson show.
    """

    def __init__(self, *, seed: int, length: int, defects: int):
        self.samples, self.length, self.defects = ProceduralDefects(IMAGE_SIZE, "source", seed), length, defects

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, surface, found = self.samples.crowded(index, self.defects)
        return torch.from_numpy(image), patch_names(surface, found)


def patch_names(surface: str, defects: Iterable[tuple[str, np.ndarray]]) -> Tensor:
    """What each image token shows [144], an index into ``NAMES``: a defect that covers enough of it, or the surface.

    ``defects``: (kind, mask) of each; the later one counts where two lie on the same token.
    """
    names = torch.full((GRID * GRID,), NAMES.index(surface))
    for kind, mask in defects:
        covered = mask.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3)) > PATCH_SHARE
        names[torch.from_numpy(covered.ravel())] = NAMES.index(kind)
    return names


def touched_places(mask: np.ndarray) -> set[str]:
    """The places (3 x 3) that hold at least an eighth of the defect; none on a normal image."""
    rows, columns = (np.linspace(0, side, 4).astype(int) for side in mask.shape)
    total = max(int(mask.sum()), 1)
    return {
        PLACES[r][c]
        for r in range(3)
        for c in range(3)
        if mask[rows[r] : rows[r + 1], columns[c] : columns[c + 1]].sum() >= total / 8
    }
