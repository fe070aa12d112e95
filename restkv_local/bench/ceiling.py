"""How much faster a bounded cache could write at best: attention's share of the whole cache's steps."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from restkv_local.bench.log import Sample


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What writing behind a long text could gain.

    Attributes
    ----------
    cache : str
        The column.
    depth : int
        Tokens read before.
    attention : float
        Share of a step of the whole cache that grows with its rows, in [0, 1].
    ceiling : float
        Times as fast as the whole cache if a step cost what the whole cache's costs at as many rows: scoring,
        compaction and Python for nothing.
    reached : float
        Times as fast as the whole cache as measured.
    """

    cache: str
    depth: int
    attention: float
    ceiling: float
    reached: float


def find_ceilings(
    samples: Iterable[Sample], caches: Sequence[str], *, whole: str = "full", n_gen: int
) -> list[Ceiling]:
    """Compare each column with the whole cache's steps.

    Parameters
    ----------
    samples : iterable of Sample
        Failed ones are left out.
    caches : sequence of str
        The columns.
    whole : str
        The column that holds every row, in the same type of K and V as the others.
    n_gen : int
        Tokens of tg.

    Returns
    -------
    list of Ceiling
        For every depth at which the whole cache was measured too. Empty if that was at fewer than two depths,
        or if its steps did not become slower with depth.

    Notes
    -----
    The medians are joined by straight lines, which go on beyond the first and the last depth: attention reads every
    row once, the rest of the graph does not know how many there are. One line through all of them would miss the
    short steps, which a ceiling divides by: rows that no longer fit a processor's caches cost more each.
    """
    results = [sample for sample in samples if sample.result is not None]

    def medians(cache: str) -> dict[int, tuple[float, float]]:
        """Rows attended to and seconds a step, by depth."""
        found: dict[int, list[tuple[float, float]]] = {}
        for sample in results:
            if sample.cache == cache and sample.result is not None:
                step = (float(sample.result["rows"]), sample.result["tg_s"] / n_gen)
                found.setdefault(sample.depth, []).append(step)
        return {
            depth: (statistics.median(r for r, _ in steps), statistics.median(s for _, s in steps))
            for depth, steps in sorted(found.items())
        }

    reference = medians(whole)
    if len(reference) < 2:
        return []
    rows, seconds = np.array(list(reference.values())).T
    slopes = np.diff(seconds) / np.diff(rows)

    def cost(n_rows: float) -> float:
        """Seconds of a step of the whole cache at as many rows."""
        i = np.clip(np.searchsorted(rows, n_rows), 1, len(slopes)) - 1
        return float(seconds[i] + slopes[i] * (n_rows - rows[i]))

    base = cost(0)
    if seconds[-1] <= seconds[0] or base <= 0:
        return []
    ceilings = []
    for cache in caches:
        if cache == whole:
            continue
        for depth, (n_rows, step) in medians(cache).items():
            if depth in reference:
                _, whole_step = reference[depth]
                ceilings.append(
                    Ceiling(
                        cache=cache,
                        depth=depth,
                        attention=1 - base / whole_step,
                        ceiling=whole_step / cost(n_rows),
                        reached=whole_step / step,
                    )
                )
    return ceilings
