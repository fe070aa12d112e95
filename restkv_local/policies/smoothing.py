"""Spatial smoothing: a row is worth what its neighbourhood is worth. Pure functions.

Rows are taken in token order. The rows of the window itself are smoothed apart
from the past: their attention to themselves says nothing about their
neighbours in the past, and the papers pool the past alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from restkv_local.types import F64, I32, I64

Pooling = Literal["mean", "max"]


def pool_rows(
    values: F64, kernel: int, shift: int = 0, pooling: Pooling = "mean", n_window: int = 0
) -> F64:
    """Pool each row with its neighbours; the first and last row stand in beyond the ends.

    Parameters
    ----------
    values : ndarray of shape (..., n_kv), float64
        Not changed.
    kernel : int
        Odd width of the neighbourhood; may exceed ``n_kv``.
    shift : int
        Row ``i`` takes the neighbourhood of row ``i + shift``.
    pooling : {"mean", "max"}
        What is taken of the neighbourhood.
    n_window : int
        Newest rows that are pooled apart from the others, with ends of their own.

    Returns
    -------
    ndarray of shape (..., n_kv), float64
        ``out[i]`` pools ``values[i - kernel//2 + shift .. i + kernel//2 + shift]``.
    """
    n_kv = values.shape[-1]
    if n_kv == 0:
        return np.array(values, np.float64)
    n_past = max(n_kv - n_window, 0)
    padded: F64 = values.take(_padded_rows(n_past, n_kv - n_past, kernel, shift), axis=-1)
    combine = np.add if pooling == "mean" else np.maximum
    pooled = _combine_neighbours(combine, padded, kernel)
    if 0 < n_past < n_kv:  # what mixes the two parts is nobody's
        parts = pooled[..., :n_past], pooled[..., n_past + kernel - 1 :]
        pooled = np.concatenate(parts, axis=-1)
    return pooled / kernel if pooling == "mean" else pooled


@lru_cache(maxsize=64)
def _padded_rows(n_past: int, n_window: int, kernel: int, shift: int) -> I64:
    """Rows of either part with its ends repeated beyond them, one part after the other."""
    parts = []
    for first, n in ((0, n_past), (n_past, n_window)):
        if n:
            rows = np.arange(n + kernel - 1) - kernel // 2 + shift
            parts.append(first + np.clip(rows, 0, n - 1))
    return np.concatenate(parts)


def _combine_neighbours(combine: np.ufunc, values: F64, n: int) -> F64:
    """Combine each ``n`` neighbours: those of 1, 2, 4, ... places first, of which every ``n`` is made.

    Only values that stand in the window take part, unlike in differences of a running sum: a large score leaves no
    trace far from it.
    """
    n_out = values.shape[-1] - n + 1
    pooled, done = None, 0
    runs, width = values, 1
    while width <= n:
        if n & width:
            piece = runs[..., done : done + n_out]
            pooled = piece.copy() if pooled is None else combine(pooled, piece, out=pooled)
            done += width
        runs = combine(runs[..., :-width], runs[..., width:])
        width *= 2
    assert pooled is not None, "n is at least 1"
    return pooled


def adaptive_window(
    drift: float, kernel: int, scale: float, shift_at_zero: bool = False
) -> tuple[int, int]:
    """Kernel and shift for a head whose attention drifts through the text.

    Parameters
    ----------
    drift : float
        ``D_front - D_rear``, in positions: how much further on the older half of
        the window looked than the newer half.
    kernel : int
        The least kernel, odd.
    scale : float
        Positions of drift for one step of kernel and shift.
    shift_at_zero : bool
        The released code shifts by one row where nothing drifts at all. That
        looks like an accident of its branch, so it is a switch.

    Returns
    -------
    tuple of int
        Odd kernel, and shift. A drift below ``scale`` gives ``(kernel, 0)``.
    """
    if abs(drift) < scale:
        return kernel, int(shift_at_zero and drift == 0)
    width = max(kernel, 2 * math.floor(abs(drift) / scale) + 1)
    # As released: below zero, floor + 1. That is truncation but for exact multiples of scale.
    shift = math.floor(drift / scale) + (drift < 0)
    return width, shift


def smooth_rows(
    scores: F64,
    n_window: int,
    windows: Sequence[tuple[int, int]],
    pooling: Pooling = "mean",
    *,
    n_absent: I32 | None = None,
) -> F64:
    """Pool the past and the window of each head, each for itself.

    Parameters
    ----------
    scores : ndarray of shape (n_head, n_kv)
        One layer, by KV head or by query head.
    n_window : int
        Newest rows that are the window's own.
    windows : sequence of (kernel, shift)
        One pair for each head, or one for all.
    n_absent : ndarray of shape (n_head,), int32, optional
        Places before the oldest row of each head. That row stands in for them,
        as it does beyond the end where nothing is absent.

    Returns
    -------
    ndarray of shape (n_head, n_kv), float64
    """
    if n_absent is not None and n_absent.any():
        n_kv = scores.shape[-1]
        oldest = np.minimum(n_absent, n_kv - 1)[:, None]
        scores = np.take_along_axis(scores, np.maximum(np.arange(n_kv), oldest), axis=-1)
    if len(set(windows)) == 1:
        return pool_rows(scores, *windows[0], pooling, n_window)
    return np.stack(
        [pool_rows(scores[head], *window, pooling, n_window) for head, window in enumerate(windows)]
    )
