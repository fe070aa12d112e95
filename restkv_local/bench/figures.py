"""Turns samples into figures: medians, their noise, and ratios between columns of the same round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from restkv_local.bench.log import Sample

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a cell.

    Attributes
    ----------
    name : str
        In llama-bench's words; ``{n_prompt}`` and ``{n_gen}`` stand for the tokens of pp and tg.
    unit : str
        Of the value.
    read : callable
        Takes (result, depth, n_prompt, n_gen); None where there is no such figure.
    digits : int
        Decimals worth showing.
    compared : bool
        Whether a ratio to the first column means something.
    """

    name: str
    unit: str
    read: Callable[[Result, int, int, int], float | None]
    digits: int = 1
    compared: bool = True


def _each(name: str) -> Callable[[Result, int, int, int], float | None]:
    """Milliseconds of one eviction."""
    return lambda result, *_: result[name] / result["events"] if result["events"] else None


def _share(*names: str) -> Callable[[Result, int, int, int], float | None]:
    """Percent of the time to first token."""

    def read(result: Result, *_: int) -> float | None:
        if not result["events"] or not result["ttft_s"]:
            return None
        spent: float = sum(result[name] for name in names)
        return spent / 10 / float(result["ttft_s"])

    return read


def _mib(name: str) -> Callable[[Result, int, int, int], float | None]:
    return lambda result, *_: None if result[name] is None else result[name] / 2**20


METRICS: Final = (
    Metric("pp{n_prompt}", "t/s", lambda r, depth, n_prompt, n_gen: n_prompt / r["pp_s"]),
    Metric("tg{n_gen}", "t/s", lambda r, depth, n_prompt, n_gen: n_gen / r["tg_s"]),
    # Without the evictions that fall into it: a rare step is none of the middle ones.
    Metric("tg step", "ms", lambda r, *_: r["step_ms"], digits=2),
    Metric("ttft", "s", lambda r, *_: r["ttft_s"], digits=2),
    Metric("peak memory", "MiB", _mib("peak_bytes"), digits=0),
    Metric("K and V", "MiB", _mib("kv_bytes"), digits=0),
    Metric("evictions", "", lambda r, *_: r["events"] or None, digits=0, compared=False),
    Metric("score", "ms each", _each("score_ms"), compared=False),
    Metric("compact", "ms each", _each("compact_ms"), compared=False),
    Metric("guide", "ms each", _each("guide_ms"), compared=False),
    Metric("score+compact", "% of ttft", _share("score_ms", "compact_ms"), compared=False),
    Metric("guide", "% of ttft", _share("guide_ms"), compared=False),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one cache at one depth, over all rounds.

    Attributes
    ----------
    test, unit : str
        The metric.
    depth : int
        Tokens read before.
    cache : str
        The column.
    median, mad : float
        Median over rounds, and median of the distances to it.
    n : int
        Rounds.
    ratio : float or None
        Median over rounds of value / value of the first column in the same round; None where that means
        nothing.
    digits : int
        Decimals worth showing.
    """

    test: str
    unit: str
    depth: int
    cache: str
    median: float
    mad: float
    n: int
    ratio: float | None
    digits: int

    @property
    def row(self) -> str:
        """What llama-bench would call the row."""
        return f"{self.test} @ d{self.depth}"


def summarise(
    samples: Iterable[Sample], caches: Sequence[str], *, n_prompt: int, n_gen: int
) -> list[Figure]:
    """Put samples in figures.

    Parameters
    ----------
    samples : iterable of Sample
        Failed ones are left out.
    caches : sequence of str
        The columns; ratios refer to the first.
    n_prompt, n_gen : int
        Tokens of pp and of tg.

    Returns
    -------
    list of Figure
        By metric, then depth, then column. A figure that nothing was measured of is absent.
    """
    results = {sample.key: sample.result for sample in samples if sample.result is not None}
    depths = sorted({depth for _, depth, _ in results})
    figures = []
    for metric in METRICS:
        for depth in depths:
            values: dict[str, dict[int, float]] = {cache: {} for cache in caches}
            for (cache, found, repetition), result in results.items():
                value = metric.read(result, depth, n_prompt, n_gen) if found == depth else None
                if value is not None:
                    values[cache][repetition] = value
            first = values[caches[0]] if metric.compared else {}
            for cache in caches:
                if values[cache]:
                    figures.append(
                        _figure(metric, depth, cache, values[cache], first, (n_prompt, n_gen))
                    )
    return figures


def median_and_mad(values: Iterable[float]) -> tuple[float, float]:
    """Return the median and the median of the distances to it."""
    values = list(values)
    median = statistics.median(values)
    return median, statistics.median(abs(value - median) for value in values)


def _figure(
    metric: Metric,
    depth: int,
    cache: str,
    values: Mapping[int, float],
    first: Mapping[int, float],
    tokens: tuple[int, int],
) -> Figure:
    median, mad = median_and_mad(values.values())
    ratios = [value / first[i] for i, value in values.items() if first.get(i)]
    return Figure(
        test=metric.name.format(n_prompt=tokens[0], n_gen=tokens[1]),
        unit=metric.unit,
        depth=depth,
        cache=cache,
        median=median,
        mad=mad,
        n=len(values),
        ratio=statistics.median(ratios) if ratios else None,
        digits=metric.digits,
    )
