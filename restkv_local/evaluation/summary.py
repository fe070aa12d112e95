"""Turns the records of a log into means, intervals and spreads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from restkv_local.evaluation import likelihood
from restkv_local.evaluation.grid import Cell
from restkv_local.evaluation.log import Record
from restkv_local.evaluation.metrics.registry import METRICS

_Z: Final = 1.96  # 95 %, two-sided
# Student's for as many degrees of freedom, from 1 on; beyond, its expansion in their inverse (Abramowitz and
# Stegun 26.7.5) is right to 0.001.
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Section:
    """Records that belong in one table: one family, length and way of asking.

    ``n_after`` is how many tokens followed each text, where tables differ in it.
    """

    family: str
    question: str
    length: int | None
    records: tuple[Record, ...]
    n_after: int | None = None

    @property
    def title(self) -> str:
        """What they have in common, in words."""
        words = [self.family]
        words += [f"{self.length:,} tokens"] if self.length is not None else []
        words += [f"question {self.question}"] if self.question else []
        words += [f"scored {self.n_after:,}"] if self.n_after is not None else []
        return ", ".join(words)

    @property
    def cells(self) -> list[Cell]:
        """The grid, each of its rules in the order of measuring."""
        cells = list(dict.fromkeys(record.cell for record in self.records))
        orders = [
            list(dict.fromkeys(getattr(cell, name) for cell in cells)) for name in Cell.__slots__
        ]
        return sorted(
            cells,
            key=lambda cell: [
                order.index(getattr(cell, name))
                for name, order in zip(Cell.__slots__, orders, strict=True)
            ],
        )

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Task and metric of every score."""
        return list(
            dict.fromkeys((r.item.task, metric) for r in self.records for metric in r.scores)
        )

    def of(self, cell: Cell) -> list[Record]:
        """Return the records of a cell."""
        return [record for record in self.records if record.cell == cell]


def split_sections(records: Iterable[Record]) -> list[Section]:
    """Sort records into tables, in the order of their first ones."""
    groups: dict[tuple[str, str, int | None], dict[int | None, list[Record]]] = {}
    for record in records:
        item = record.item
        # Right after an eviction a text is predicted worse: more tokens are another mean.
        n_after = record.tokens.get("after") if item.family == likelihood.NAME else None
        group = groups.setdefault((item.family, item.question, item.length), {})
        group.setdefault(n_after, []).append(record)
    return [
        Section(*key, tuple(found), n_after if len(group) > 1 else None)
        for key, group in groups.items()
        for n_after, found in group.items()
    ]


def scores_of(records: Iterable[Record], task: str, metric: str) -> list[float]:
    """Return the scores of one column, as its benchmark scales them."""
    scale = scale_of(metric)
    return [
        scale * record.scores[metric]
        for record in records
        if record.item.task == task and metric in record.scores
    ]


def scale_of(metric: str) -> float:
    """Return what a metric's scores are shown out of; 1 for one that this version does not know."""
    return METRICS[metric].scale if metric in METRICS else 1


def main_metrics(records: Iterable[Record]) -> dict[str, str]:
    """Return the main metric of each task."""
    return {record.item.task: next(iter(record.scores)) for record in records}


def bounded_mean(scores: Sequence[float], most: float) -> Mean:
    """Average scores between 0 and ``most``, with Wilson's interval.

    For scores that are all or nothing it is Wilson's; others vary less than such of the same mean, so that it is too
    wide for them rather than too narrow.
    """
    return wilson(statistics.fmean(scores) / most, len(scores), most)


def wilson(share: float, n: int, most: float = 1.0) -> Mean:
    """Return a share of ``n`` with Wilson's 95 % interval, all times ``most``."""
    spread = _Z**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(max(0.0, share * (1 - share)) / n + spread / (4 * n)) / (1 + spread)
    # Rounding must not put a limit on the wrong side.
    low, high = min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
    return Mean(most * share, most * low, most * high, n)


def normal_mean(values: Sequence[float]) -> Mean:
    """Average values without bounds; the interval is Student's, none for one value."""
    mean, n = statistics.fmean(values), len(values)
    half = _student(n - 1) * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.inf
    return Mean(mean, mean - half, mean + half, n)


def _student(freedom: int) -> float:
    """Return how many standard errors hold 95 %, two-sided."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    terms = (
        (_Z**3 + _Z) / 4,
        (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96,
        (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 384,
    )
    more: float = sum(term / freedom**i for i, term in enumerate(terms, start=1))
    return _Z + more


@dataclass(frozen=True, slots=True)
class FamilyMean:
    """The mean over tasks, and how far it spreads.

    Attributes
    ----------
    mean : Mean
        Of the tasks' means; the interval as if all samples were of one task.
    over_tasks, over_seeds : float or None
        Standard deviation of the tasks' means, and of the seeds' means over the tasks that every seed has; None with
        fewer than two.
    """

    mean: Mean
    over_tasks: float | None
    over_seeds: float | None


def family_mean(records: Sequence[Record]) -> FamilyMean:
    """Average the main scores of a family, each task counting alike; in percent, unless all share another scale."""
    metrics = main_metrics(records)

    def means_of(found: Sequence[Record]) -> dict[str, float]:
        by_task = {
            task: [r.scores[metric] for r in found if r.item.task == task]
            for task, metric in metrics.items()
        }
        return {task: statistics.fmean(scores) for task, scores in by_task.items() if scores}

    scales = {scale_of(metric) for metric in metrics.values()}
    most = scales.pop() if len(scales) == 1 else 100
    tasks = list(means_of(records).values())
    seeds = dict.fromkeys(record.item.seed for record in records)
    by_seed = [means_of([r for r in records if r.item.seed == seed]) for seed in seeds]
    # A run that was stopped has fewer tasks of its last seed.
    shared = [task for task in metrics if all(task in means for means in by_seed)]
    of_seeds = [statistics.fmean(means[task] for task in shared) for means in by_seed if shared]
    return FamilyMean(
        wilson(statistics.fmean(tasks), len(records), most),
        most * statistics.stdev(tasks) if len(tasks) > 1 else None,
        most * statistics.stdev(of_seeds) if len(of_seeds) > 1 else None,
    )


def kept_share(records: Sequence[Record]) -> float:
    """Return the mean share of the text's rows that were in the cache at the end."""
    return statistics.fmean(
        record.kv.get("kept", record.kv["budget"]) / record.kv["seen"] for record in records
    )
