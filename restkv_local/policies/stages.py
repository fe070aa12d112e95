"""Selection in two stages: who comes first, and how a score says so. Pure functions.

The planner keeps the highest scores. A rule that chooses some rows by one figure
and the rest by another raises the first ones above all others.
"""

from __future__ import annotations

import numpy as np

from restkv_local.types import F32, F64, I32, Bool, Observation


def protected_rows(observation: Observation, candidates: Bool) -> Bool:
    """Rows that are there and stay whatever their score.

    Parameters
    ----------
    observation : Observation
        The rows of a question that goes may be its last.
    candidates : ndarray of shape (n_head_kv, n_kv), bool
        Rows that are there and not protected.

    Returns
    -------
    ndarray of shape (n_head_kv, n_kv), bool
    """
    present = observation.positions[:, : candidates.shape[1]] >= 0
    protected: Bool = present & ~candidates
    return protected


def strongest(scores: F32 | F64, candidates: Bool, n_first: I32) -> Bool:
    """Mark the highest scores of each head; equal scores mark the older row.

    Parameters
    ----------
    scores : ndarray of shape (n_head_kv, n_kv)
        Finite.
    candidates : ndarray of shape (n_head_kv, n_kv), bool
        Rows that may be marked.
    n_first : ndarray of shape (n_head_kv,), int32
        How many; with fewer candidates, all of them.

    Returns
    -------
    ndarray of shape (n_head_kv, n_kv), bool
    """
    order = np.argsort(-np.where(candidates, scores, -np.inf), axis=-1, kind="stable")
    marked = np.zeros(candidates.shape, bool)
    first = np.arange(candidates.shape[1]) < n_first[:, None]
    np.put_along_axis(marked, order, first, axis=-1)
    return marked & candidates


def newest(candidates: Bool, n_first: I32) -> Bool:
    """Mark the newest candidates of each head: arguments and result as in `strongest`."""
    age = np.cumsum(candidates[:, ::-1], axis=-1)[:, ::-1]  # 1 at the newest candidate
    marked: Bool = candidates & (age <= n_first[:, None])
    return marked


def put_first(scores: F32, first: Bool) -> F32:
    """Raise the marked rows above all others, whose order stays.

    The marked rows are equal among themselves: at most as many as will stay may
    be marked.
    """
    limit = np.finfo(np.float32).max
    # Another row may stand at the limit already.
    return np.where(first, limit, np.minimum(scores, np.nextafter(limit, np.float32(0))))
