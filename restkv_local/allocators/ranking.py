"""Heads compete for rows: how many of each are among the best of a pool."""

from __future__ import annotations

import numpy as np

from restkv_local.types import F32, F64, I32, Bool


def count_selected(scores: F32 | F64, candidates: Bool, n_select: I32) -> F64:
    """Count the rows of each head among the best of its pool.

    Rows that tie at the edge share the places that are left, in proportion to
    how many of each head there are. Scores that say nothing about heads, all
    equal or by position, so split evenly; whole ties to one head would starve
    the others.

    Parameters
    ----------
    scores : ndarray of shape (n_pool, n_head, n_kv)
        Finite; higher is better, comparable within a pool.
    candidates : ndarray of shape (n_pool, n_head, n_kv), bool
        Rows that take part.
    n_select : ndarray of shape (n_pool,), int32
        Places of each pool, at most as many as candidates.

    Returns
    -------
    ndarray of shape (n_pool, n_head), float64
        Sums to ``n_select`` over the heads.
    """
    ranked = np.where(candidates, scores, -np.inf)
    edge = np.full(len(ranked), np.inf, ranked.dtype)
    for pool in np.flatnonzero(n_select):
        values = ranked[pool].ravel()
        place = values.size - n_select[pool]
        edge[pool] = np.partition(values, place)[place]
    at_edge = edge[:, None, None]
    above = np.count_nonzero(ranked > at_edge, axis=-1)
    tied = np.count_nonzero(ranked == at_edge, axis=-1)
    left = n_select - above.sum(axis=1)
    share = left / np.maximum(tied.sum(axis=1), 1)
    counts: F64 = above + share[:, None] * tied
    return counts
