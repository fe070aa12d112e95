"""Word overlap as question answering scores it: answers stripped to their words, then F1 of the two bags."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Final

_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower the case, drop ASCII punctuation, then articles, then surplus white space.

    Official: normalize_answer of SQuAD's evaluation, which LongBench (metrics.py) and InfiniteBench
    (src/compute_scores.py) take over. Punctuation goes first: "the-end" is one word and keeps its "the".
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Return the F1 of two bags of words or characters; 0 where they share none."""
    n_shared = sum((Counter(prediction) & Counter(reference)).values())
    # 2 P R / (P + R) with P = shared / n_prediction and R = shared / n_reference.
    return 2 * n_shared / (len(prediction) + len(reference)) if n_shared else 0.0
