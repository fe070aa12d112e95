"""What is left of a cache's speed behind a long text: the ratio to the shortest one of the same round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from restkv_local.bench.figures import METRICS, median_and_mad
from restkv_local.bench.log import Sample

_SPEEDS = tuple(metric for metric in METRICS if metric.unit == "t/s")


@dataclass(frozen=True, slots=True)
class SpeedLeft:
    """Speed behind one depth over speed behind the smallest.

    Attributes
    ----------
    test : str
        pp or tg, with its tokens.
    cache : str
        The column.
    depth, base : int
        Tokens read before, here and at the smallest depth.
    median, mad : float
        Median over the rounds that have both, and median of the distances to it.
    n : int
        Those rounds.
    """

    test: str
    cache: str
    depth: int
    base: int
    median: float
    mad: float
    n: int


def compare_depths(
    samples: Iterable[Sample], caches: Sequence[str], *, n_prompt: int, n_gen: int
) -> list[SpeedLeft]:
    """Compare every depth with the smallest, column by column.

    Parameters
    ----------
    samples : iterable of Sample
        Failed ones are left out.
    caches : sequence of str
        The columns.
    n_prompt, n_gen : int
        Tokens of pp and of tg.

    Returns
    -------
    list of SpeedLeft
        By test, then depth, then column. A column without a round that has both depths is absent.
    """
    results = {sample.key: sample.result for sample in samples if sample.result is not None}
    depths = sorted({depth for _, depth, _ in results})
    found = []
    for metric in _SPEEDS:
        speeds = {
            key: metric.read(result, key[1], n_prompt, n_gen) for key, result in results.items()
        }
        for depth in depths[1:]:
            for cache in caches:
                ratios = [
                    deep / shallow
                    for (name, at, repetition), deep in speeds.items()
                    if (name, at) == (cache, depth)
                    and deep is not None
                    and (shallow := speeds.get((cache, depths[0], repetition)))
                ]
                if ratios:
                    median, mad = median_and_mad(ratios)
                    test = metric.name.format(n_prompt=n_prompt, n_gen=n_gen)
                    found.append(SpeedLeft(test, cache, depth, depths[0], median, mad, len(ratios)))
    return found
