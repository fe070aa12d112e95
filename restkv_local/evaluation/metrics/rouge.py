"""ROUGE of an answer, by Google's rouge-score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal

from restkv_local.optional import check_installed

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

Kind = Literal["rouge1", "rougeLsum"]


def score_rouge(
    prediction: str, references: Sequence[str], kind: Kind, *, stem: bool = False
) -> float:
    """Return the best F-measure over the references.

    Parameters
    ----------
    prediction : str
        The answer; an empty one scores 0.
    references : sequence of str
        What it is compared with.
    kind : {"rouge1", "rougeLsum"}
        Shared words, or the union over the lines of the longest common subsequences.
    stem : bool
        Whether endings are removed first, by Porter's rules.

    Raises
    ------
    ConfigError
        If rouge-score is not installed.
    """
    if not prediction.strip():
        return 0.0
    scorer = _load(kind, stem)
    return max(float(scorer.score(each, prediction)[kind].fmeasure) for each in references)


@cache
def _load(kind: Kind, stem: bool) -> RougeScorer:
    check_installed("rouge_score", "rouge-score", "a ROUGE score", extra="eval")
    # Late: it brings NLTK, which takes a second to import.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=stem)
