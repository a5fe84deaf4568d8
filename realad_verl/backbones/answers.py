"""How sure a model is of "yes" against "no", from the next-token logits where its answer begins."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from realad_verl.errors import UserError


def answer_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of the tokens that begin "yes" and "no": bare or after a space, lower, title or upper case.

    Of a word that the tokenizer splits, its first piece; a piece that begins both (a lone space) counts for neither.
    Raises UserError where nothing is left of a word.
    """

    def starts(word: str) -> set[int]:
        forms = [space + form for form in (word, word.title(), word.upper()) for space in ("", " ")]
        return {tokenizer.encode(form, add_special_tokens=False)[0] for form in forms}

    yes, no = starts("yes"), starts("no")
    if not yes - no or not no - yes:
        raise UserError("the tokenizer begins 'yes' and 'no' with the same tokens; no score can be read.")
    return sorted(yes - no), sorted(no - yes)


def yes_share(logits_V: Tensor, ids: tuple[list[int], list[int]]) -> float:
    """P(yes) / (P(yes) + P(no)) from next-token logits, each summed over its tokens (``answer_ids``)."""
    return _share(*(logits_V[part] for part in ids))


def _share(yes: Tensor, no: Tensor) -> float:
    return float(torch.sigmoid(yes.double().logsumexp(0) - no.double().logsumexp(0)))


class GenerationScores(LogitsProcessor):
    """Keeps some tokens from being generated, and of every step what `yes_share` needs.

    One processor for both, since each costs time at every step; transformers' own for the first compares every token of
    the vocabulary with the forbidden ones.
    """

    def __init__(self, forbidden: Sequence[int], ids: tuple[list[int], list[int]] | None = None) -> None:
        """``ids``: as from `answer_ids`; None: nothing is kept."""
        self._forbidden = torch.tensor(sorted(forbidden), dtype=torch.long)
        yes, no = ids if ids is not None else ([], [])
        self._n_yes, self._columns = len(yes), torch.tensor([*yes, *no], dtype=torch.long)
        self._steps: list[Tensor] = []
        self._placed = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self._placed:  # once: a list would be copied to the device at every step
            known = self._forbidden[self._forbidden < scores.shape[1]]  # a placeholder may have no logit at all
            self._columns, self._forbidden = self._columns.to(scores.device), known.to(scores.device)
            self._placed = True
        scores = scores.index_fill(1, self._forbidden, float("-inf"))
        if len(self._columns):
            self._steps.append(scores.index_select(1, self._columns))
        return scores

    def share(self, sequence: int, step: int) -> float:
        """P(yes) / (P(yes) + P(no)) of the token that step ``step`` made."""
        return _share(*self._steps[step][sequence].split([self._n_yes, len(self._columns) - self._n_yes]))
