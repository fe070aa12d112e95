"""Turn scores, an allocation and a protection mask into an eviction plan."""

from __future__ import annotations

import numpy as np

from restkv_local.errors import PlanError
from restkv_local.types import F32, I32, Bool, EvictionPlan


def protect_rows(
    n_kv: int,
    *,
    n_sink: int,
    n_recent: int,
    n_pinned: int = 0,
    n_absent: int | I32 = 0,
) -> Bool:
    """Mask of the rows no score can evict: sinks, the pinned prompt, the newest rows.

    Parameters
    ----------
    n_kv : int
        Rows of the fullest KV head.
    n_sink, n_pinned : int
        First rows of the text, and the rows of the pinned prompt that follow
        them. Both were protected at every earlier event, so they stand first.
    n_recent : int
        Newest rows.
    n_absent : int or ndarray of shape (...), int32
        Places before the oldest row of each KV head.

    Returns
    -------
    ndarray of shape (..., n_kv), bool
        False where a head has no row.
    """
    absent = np.asarray(n_absent, np.int32)[..., None]
    places = np.arange(n_kv, dtype=np.int32)
    rows = places - absent if absent.any() else places  # counted from the oldest row of the head
    mask: Bool = (rows >= 0) & ((rows < n_sink + n_pinned) | (places >= n_kv - n_recent))
    return np.broadcast_to(mask, (*absent.shape[:-1], n_kv))


def rankable(scores: F32) -> F32:
    """Make every score finite: NaN becomes the lowest there is, infinities the ends of float32."""
    if np.isfinite(scores).all():
        return scores
    limit = np.finfo(np.float32).max
    return np.clip(np.where(np.isnan(scores), -limit, scores), -limit, limit).astype(np.float32)


def select_keep(scores: F32, protected: Bool, n_keep: I32, present: Bool | None = None) -> Bool:
    """Rows that each KV head keeps.

    Parameters
    ----------
    scores : ndarray of shape (..., n_kv)
        Higher means keep; equal scores keep the older token. NaN ranks last, with
        -inf; +inf ranks first.
    protected : ndarray of shape (..., n_kv), bool
        Rows that stay whatever their score.
    n_keep : ndarray of shape (...), int32
        Rows to keep, protected ones included. At the number of rows or more, all stay.
    present : ndarray of shape (..., n_kv), bool, optional
        False where a head has no row.

    Returns
    -------
    ndarray of shape (..., n_kv), bool
        Exactly ``n_keep`` rows, or all of them where there are fewer.

    Raises
    ------
    PlanError
        If more rows are protected than may stay.
    """
    rows = np.ones(scores.shape, bool) if present is None else present
    candidate = rows & ~protected
    n_candidate = np.count_nonzero(candidate, axis=-1)
    n_protected = np.count_nonzero(rows & protected, axis=-1)
    n_may = np.broadcast_to(n_keep, n_protected.shape)
    n_select = np.minimum(n_may, n_candidate + n_protected) - n_protected
    if (n_select < 0).any():
        worst = np.unravel_index(np.argmin(n_select), n_select.shape)
        raise PlanError(
            f"{n_protected[worst]} rows are protected but only {n_may[worst]} may stay;"
            " raise the budget or lower n_sink, n_recent or the pinned prompt"
        )
    ranked = np.where(candidate & ~np.isnan(scores), scores, -np.inf)
    # The weakest score that stays. One sort for all heads, then ties: cheaper than an order for each.
    weakest = scores.shape[-1] - np.maximum(n_select, 1)
    edge = np.take_along_axis(np.sort(ranked, axis=-1), weakest[..., None], axis=-1)
    above = ranked > edge
    tied = candidate & (ranked == edge)
    n_tied = n_select - np.count_nonzero(above, axis=-1)
    if (np.count_nonzero(tied, axis=-1) > n_tied).any():
        tied &= np.cumsum(tied, axis=-1, dtype=np.int32) <= n_tied[..., None]  # the older ones
    selected: Bool = (above | tied) & (n_select > 0)[..., None]
    return selected | (rows & protected)


def plan_eviction(
    scores: F32, allocation: I32, protected: Bool, present: Bool | None = None
) -> EvictionPlan:
    """Choose the rows that stay in every layer and KV head.

    Parameters
    ----------
    scores : ndarray of shape (n_layer, n_head_kv, n_kv)
        Higher means keep.
    allocation : ndarray of shape (n_layer, n_head_kv), int32
        Rows that may stay. At the number of rows or more, all of them do.
    protected : ndarray of shape (n_kv,) or (n_layer, n_head_kv, n_kv), bool
        Rows that stay whatever their score.
    present : ndarray of shape (n_layer, n_head_kv, n_kv), bool, optional
        False where a head has no row.

    Returns
    -------
    EvictionPlan
        Keeps exactly the allocation in each segment, or all its rows.

    Raises
    ------
    PlanError
        If the shapes disagree, or more rows are protected than may stay.
    """
    if scores.ndim != 3 or allocation.shape != scores.shape[:2]:
        raise PlanError(
            "scores must be (n_layer, n_head_kv, n_kv) and match the allocation;"
            f" got {scores.shape} and an allocation of {allocation.shape}"
        )
    if protected.shape not in (scores.shape[2:], scores.shape):
        raise PlanError(
            f"protected must be {scores.shape[2:]} or {scores.shape}; got {protected.shape}"
        )
    if present is not None and present.shape != scores.shape:
        raise PlanError(f"present must be {scores.shape}; got {present.shape}")
    masks = np.broadcast_to(protected, scores.shape)
    return EvictionPlan(select_keep(scores, masks, allocation, present), allocation.copy())
