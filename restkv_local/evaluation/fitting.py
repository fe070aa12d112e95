"""Turns a builder of samples of any size into the largest sample that a number of tokens holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from restkv_local.errors import ConfigError
from restkv_local.evaluation.sample import Sample

# Search no further once this close to the limit: each step tokenizes the whole text.
_CLOSE_ENOUGH: Final = 0.005


def fit_sample(
    build: Callable[[int], Sample], measure: Callable[[Sample], int], length: int, least: int = 1
) -> Sample:
    """Return the largest sample that fits.

    Parameters
    ----------
    build : callable
        Makes the sample of a given size, in units of haystack; the same sample for the same size. Larger ones
        have more tokens, nearly always.
    measure : callable
        Tokens of a sample, its answer included.
    length : int
        Most of them.
    least : int
        The smallest size that can be built.

    Returns
    -------
    Sample
        Never longer than ``length``; shorter by at most one unit, or by 0.5 %, whichever is more.

    Raises
    ------
    ConfigError
        If not even the smallest sample fits.
    """
    best = build(least)
    low, n_low = least, measure(best)
    if n_low > length:
        raise ConfigError(
            f"{best.task} cannot be {length} tokens long: its smallest prompt takes {n_low} with the"
            f" {best.max_new_tokens} of its answer; give a length of at least {n_low}"
        )
    high, n_high = low, n_low
    while n_high <= length:
        if length - n_high <= _CLOSE_ENOUGH * length:
            return best
        low, n_low, high = high, n_high, 2 * high
        sample = build(high)
        n_high = measure(sample)
        best = sample if n_high <= length else best
    halve = False
    while high - low > 1 and length - n_low > _CLOSE_ENOUGH * length:
        # Sizes are nearly proportional to tokens; halving in turn bounds the steps where they are not.
        share = 0.5 if halve else (length - n_low) / (n_high - n_low)
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        sample = build(middle)
        n_middle = measure(sample)
        if n_middle <= length:
            best, low, n_low = sample, middle, n_middle
        else:
            high, n_high = middle, n_middle
        halve = not halve
    return best
