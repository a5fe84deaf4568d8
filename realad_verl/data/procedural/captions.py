"""The words of the procedural images: short reasonings that name surface, defect type, tone, size and place.

One grammar serves both domains, so the tiny tokenizer (`realad_verl.tiny.tokenizer`) knows every word of either.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
TONES = ("dark", "bright", "red", "green", "blue", "brown", "gray", "faint")
SIZES = ("small", "large", "long", "")
SOURCE_SURFACES = (
    "wood", "fabric", "metal", "leather", "tile", "mesh", "plastic", "concrete", "washer", "button", "capsule", "plate",
)  # fmt: skip
SHIFTED_SURFACES = ("brick", "marble", "perforated sheet", "carpet", "circuit board", "gear", "nut", "knit")
SOURCE_DEFECTS = ("scratch", "spot", "hole", "stain", "crack", "missing part")
SHIFTED_DEFECTS = ("scratch", "stain", "crack", "missing part", "dent", "thread", "smear", "fold", "shift")

INTROS = ("This is {s}.", "The image shows {s}.", "I see {s}.", "The surface is {s}.")
# As many first words as `CLEAN` has, so that a greedy choice of words does not favour either label.
FINDINGS = (
    "There is a {d} at the {p}.",
    "A {d} is visible at the {p}.",
    "At the {p} there is a {d}.",
    "I find a {d} at the {p}.",
)
CLOSES_ANOMALOUS = ("So it has a defect.", "This {t} is an anomaly.", "It is not normal.", "")
CLEAN = (
    "The {s} looks even at the top and at the bottom.",
    "No scratch, spot, hole, stain or crack is visible.",
    "All of the texture is regular everywhere.",
    "I find no damage on the {s}.",
)
CLOSES_NORMAL = ("So it has no defect.", "There is no anomaly.", "It is normal.", "")


@dataclass(frozen=True)
class Facts:
    """What a caption tells. ``defect_type`` is None for a normal image; then the other defect words are unused."""

    surface: str
    defect_type: str | None = None
    tone: str = ""
    size: str = ""
    place: str = ""


def place_name(row: float, column: float) -> str:
    """Name of the place at (row, column), both in [0, 1) from the top left corner: a 3 x 3 division."""
    return PLACES[min(int(row * 3), 2)][min(int(column * 3), 2)]


def defect_phrase(facts: Facts) -> str:
    """Size, tone and type, for example ``small dark scratch``."""
    return " ".join(word for word in (facts.size, facts.tone, facts.defect_type) if word)


def reasoning(facts: Facts, rng: np.random.Generator) -> str:
    """One reasoning text for the facts, worded at random."""
    intro = INTROS[rng.integers(len(INTROS))].format(s=facts.surface)
    if facts.defect_type is None:
        body, closes = CLEAN[rng.integers(len(CLEAN))].format(s=facts.surface), CLOSES_NORMAL
    else:
        finding = FINDINGS[rng.integers(len(FINDINGS))]
        body, closes = finding.format(d=defect_phrase(facts), p=facts.place), CLOSES_ANOMALOUS
    close = closes[rng.integers(len(closes))].format(t=facts.defect_type)
    return " ".join(part for part in (intro, body, close) if part)


def response(text: str, label: int) -> str:
    """The whole answer in the fixed format (see `realad_verl.data.prompts.INSTRUCTION`)."""
    return f"<think> {text} </think><answer> {'yes' if label else 'no'} </answer>"


PLACE_QUESTION = "Check each place. Is there a defect?"


def place_answers(places: frozenset[str] | set[str], rng: np.random.Generator) -> str:
    """The answer to ``PLACE_QUESTION``: all nine places in random order, each with yes where a defect lies."""
    order = rng.permutation(sum(PLACES, ()))
    return "".join(f" {place} {'yes' if place in places else 'no'}." for place in order)


def vocabulary_texts() -> Iterator[str]:
    """Texts in which every word of the grammar occurs."""
    for template in (*INTROS, *FINDINGS, *CLOSES_ANOMALOUS, *CLEAN, *CLOSES_NORMAL):
        yield " " + template.format(s="surface", d="defect", p="place", t="defect")
    yield f"{PLACE_QUESTION} {PLACE_QUESTION}"
    words = (*SOURCE_SURFACES, *SHIFTED_SURFACES, *SOURCE_DEFECTS, *SHIFTED_DEFECTS, *TONES, *SIZES, *sum(PLACES, ()))
    yield "".join(f" {word}" for word in words)
