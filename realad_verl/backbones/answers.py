"""How sure a model is of "yes" against "no", from the next-token logits where its answer begins."""

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
    yes, no = (torch.logsumexp(logits_V[part].double(), 0) for part in ids)
    return float(torch.sigmoid(yes - no))


class AnswerScores(LogitsProcessor):
    """Keeps what `yes_share` needs of every step of a generation, and changes nothing."""

    def __init__(self, ids: tuple[list[int], list[int]]) -> None:
        self._yes, self._no = ids
        self._columns = torch.tensor([*self._yes, *self._no])
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._columns = self._columns.to(scores.device)  # once: a list would be copied to the device at every step
        self._steps.append(scores.index_select(1, self._columns))
        return scores

    def share(self, sequence: int, step: int) -> float:
        """P(yes) / (P(yes) + P(no)) of the token that step ``step`` made."""
        first = len(self._yes)
        return yes_share(self._steps[step][sequence], (list(range(first)), list(range(first, first + len(self._no)))))
