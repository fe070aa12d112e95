"""What the registry knows of a metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from restkv_local.evaluation.sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One rule that scores an answer.

    Attributes
    ----------
    name : str
        As samples name it.
    summary : str
        The rule, in one line.
    rule : callable
        ``rule(prediction, sample)``: a score between 0 and 1.
    scale : int
        What its benchmark multiplies the mean by when it prints it.
    """

    name: str
    summary: str
    rule: Callable[[str, Sample], float]
    scale: int = 100
