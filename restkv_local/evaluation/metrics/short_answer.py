"""Answers of one number, one label or one word."""

from __future__ import annotations

import re
import string
from decimal import Decimal, InvalidOperation
from typing import Final

from restkv_local.evaluation.metrics.base import Metric
from restkv_local.evaluation.sample import Sample

_MARKED: Final = re.compile(r"####\s*\$?(-?[\d.,]*\d)")
_NUMBER: Final = re.compile(r"-?\$?\d[\d.,]*")


def number(prediction: str, sample: Sample) -> float:
    """Return 1 if the number after ``####``, or else the last number, equals the reference.

    Official: GSM8K marks answers so; lm-evaluation-harness (lm_eval/tasks/gsm8k/gsm8k.yaml) has a strict filter, the
    first mark, and a flexible one, the last number. Here the second stands in where there is no mark.
    Values are compared, so "1,000.0" is 1000.
    """
    marked = _MARKED.search(prediction)
    found = [marked[1]] if marked else _NUMBER.findall(prediction)
    said, right = (_value(found[-1]) if found else None), _value(sample.references[0])
    return float(said is not None and said == right)


def label(prediction: str, sample: Sample) -> float:
    """Return 1 if the first of the labels that the answer names is the right one, whatever its case.

    Official: none for generated answers; lm-evaluation-harness compares the labels' probabilities.
    """
    names = "|".join(re.escape(each) for each in sample.extra["all_classes"])
    match = re.search(rf"\b(?:{names})\b", prediction, re.IGNORECASE)
    return float(match is not None and match[0].lower() == sample.references[0].lower())


def last_word(prediction: str, sample: Sample) -> float:
    """Return 1 if the answer's first word is the reference, punctuation and case left out.

    Official: LAMBADA asks for the word itself; lm-evaluation-harness asks that its tokens be the likeliest, which
    includes case and punctuation.
    """
    words = [word for word in map(_strip, prediction.split()) if word]
    return float(words[:1] == [_strip(sample.references[0])])


def _value(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", "").replace("$", "").rstrip("."))
    except InvalidOperation:
        return None


def _strip(word: str) -> str:
    return word.strip(string.punctuation + "“”‘’…").lower()


METRICS: Final = (
    Metric(name="number", summary="whether the final number is right", rule=number),
    Metric(name="label", summary="whether the first label named is right", rule=label),
    Metric(name="last_word", summary="whether the first word is right", rule=last_word),
)
