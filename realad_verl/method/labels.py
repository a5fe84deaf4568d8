"""What an image-level label may look like, in data, in rewards and in answers: y = 1 anomalous, y = 0 normal.

The one place that reads a label or turns one into the answer that is right for it.
"""

import math
from typing import Any

LABEL_TO_ANSWER = {0: "no", 1: "yes"}
WORDS = {
    **dict.fromkeys(("yes", "1", "true", "anomalous", "anomaly"), 1),
    **dict.fromkeys(("no", "0", "false", "normal"), 0),
}
ALLOWED = "yes or no, 1 or 0, true or false, anomalous (or anomaly) or normal, words in any case"


def read_label(value: Any) -> int | None:
    """1 anomalous, 0 normal, or None for what is neither; no value raises.

    Taken are the words of ``ALLOWED`` with white space around them, bools, and the numbers 1 and 0 of any type (a
    column with gaps holds 1.0 and NaN). A data set's own words, such as MVTec's "good", are its reader's business.

    >>> [read_label(value) for value in ("Yes", " no", 1, False, "0", 1.0, "anomalous", "Normal")]
    [1, 0, 1, 0, 0, 1, 1, 0]
    >>> [read_label(value) for value in ("maybe", "", None, 0.5, float("nan"), 2, "good", ["yes"])]
    [None, None, None, None, None, None, None, None]
    """
    if isinstance(value, str):
        return WORDS.get(value.strip().lower())
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if math.isfinite(number) and number in LABEL_TO_ANSWER else None
