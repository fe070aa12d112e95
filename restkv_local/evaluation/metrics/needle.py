"""How found needles are scored: by the fact itself, or by the wording of the whole sentence."""

from __future__ import annotations

from typing import Final

from restkv_local.evaluation.metrics.base import Metric
from restkv_local.evaluation.metrics.rouge import score_rouge
from restkv_local.evaluation.sample import Sample


def substring(prediction: str, sample: Sample) -> float:
    """Return 1 if any reference stands in the answer, whatever its case.

    The rule of most needle tests since the first one, whose judge was a model. White space counts as one space, so
    that an answer may break its line anywhere.
    """
    answer = " ".join(prediction.lower().split())
    return float(any(" ".join(each.lower().split()) in answer for each in sample.references))


def rouge_1(prediction: str, sample: Sample) -> float:
    """Return ROUGE-1's F-measure of needle and answer, with stemming.

    Official: 10 x this in KVCache-Factory (run_needle_in_haystack.py) and in the papers that use it. kvpress takes
    another library (rouge) and no stemming. An answer in words of its own scores low though it is right: read
    it beside ``substring``.
    """
    return score_rouge(prediction, [str(sample.extra["needle"])], "rouge1", stem=True)


METRICS: Final = (
    Metric(name="substring", summary="whether any reference is in the answer", rule=substring),
    Metric(
        name="rouge_1", summary="ROUGE-1 F-measure of needle and answer", rule=rouge_1, scale=10
    ),
)
