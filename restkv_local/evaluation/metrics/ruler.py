"""RULER's two metrics: how many references stand in the answer, and whether any does."""

from __future__ import annotations

import re
from typing import Final

from restkv_local.evaluation.metrics.base import Metric
from restkv_local.evaluation.sample import Sample

_CONTROL: Final = re.compile(r"[\x00-\x1f]")


def match_all(prediction: str, sample: Sample) -> float:
    """Return the share of the references that stand in the answer, whatever their case.

    Official: string_match_all in scripts/eval/synthetic/constants.py, after postprocess_pred of evaluate.py, which
    turns control characters into line breaks. kvpress deletes them instead. Only the mean is rounded there, here
    nothing is.
    """
    answer = _clean(prediction)
    return sum(each.lower() in answer for each in sample.references) / len(sample.references)


def match_part(prediction: str, sample: Sample) -> float:
    """Return 1 if any reference stands in the answer, whatever its case.

    Official: string_match_part, in the same places.
    """
    answer = _clean(prediction)
    return float(any(each.lower() in answer for each in sample.references))


def _clean(prediction: str) -> str:
    return _CONTROL.sub("\n", prediction.strip()).strip().lower()


METRICS: Final = (
    Metric(name="match_all", summary="share of the references in the answer", rule=match_all),
    Metric(name="match_part", summary="whether any reference is in the answer", rule=match_part),
)
