"""Names of the metrics; samples name them, the command line and the tests read this table."""

from __future__ import annotations

from typing import Final

from restkv_local.evaluation.metrics import infinitebench, longbench, needle, ruler, short_answer
from restkv_local.evaluation.metrics.base import Metric
from restkv_local.evaluation.sample import Sample

METRICS: Final[dict[str, Metric]] = {
    metric.name: metric
    for metric in (
        *needle.METRICS,
        *ruler.METRICS,
        *longbench.METRICS,
        *infinitebench.METRICS,
        *short_answer.METRICS,
    )
}


def score_sample(prediction: str, sample: Sample) -> dict[str, float]:
    """Score an answer by every metric that the sample names, the main one first.

    Returns
    -------
    dict of str to float
        Between 0 and 1 each; ``METRICS[name].scale`` is what the benchmark multiplies it by.

    Raises
    ------
    ConfigError
        If a metric's package is not installed.
    """
    names = (sample.metric, *sample.more_metrics)
    return {name: METRICS[name].rule(prediction, sample) for name in names}
