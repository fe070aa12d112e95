"""Turn scores, an allocation and a protection mask into an eviction plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from restkv_local.errors import PlanError
from restkv_local.types import F32, I32, Bool, EvictionPlan


def protect_rows(n_kv: int, *, n_sink: int, n_recent: int, n_pinned: int = 0) -> Bool:
    """Mask of the rows no score can evict: sinks, the pinned prompt, the newest rows.

    Parameters
    ----------
    n_kv : int
        Rows in use.
    n_sink, n_pinned : int
        First rows of the text, and the rows of the pinned prompt that follow
        them. Both were protected at every earlier event, so they stand first.
    n_recent : int
        Newest rows.

    Returns
    -------
    ndarray of shape (n_kv,), bool
    """
    rows = np.arange(n_kv)
    return (rows < n_sink + n_pinned) | (rows >= n_kv - n_recent)


def select_keep(scores: F32, protected: Bool, n_keep: int) -> I32:
    """Rows that one KV head keeps.

    Parameters
    ----------
    scores : ndarray of shape (n_kv,)
        Higher means keep. NaN ranks last, with -inf; +inf ranks first.
    protected : ndarray of shape (n_kv,), bool
        Rows that stay whatever their score.
    n_keep : int
        Rows to keep, protected ones included.

    Returns
    -------
    ndarray of shape (min(n_keep, n_kv),), int32
        Ascending rows.

    Raises
    ------
    PlanError
        If more rows are protected than may stay.
    """
    if n_keep >= scores.size:
        return np.arange(scores.size, dtype=np.int32)
    n_protected = int(np.count_nonzero(protected))
    if n_protected > n_keep:
        raise PlanError(
            f"{n_protected} rows are protected but only {n_keep} may stay;"
            " raise the budget or lower n_sink, n_recent or the pinned prompt"
        )
    candidates = np.flatnonzero(~protected)
    ranked = scores[candidates]
    ranked = np.where(np.isnan(ranked), -np.inf, ranked)
    # Stable sort on -score: equal scores keep the older token, on every machine.
    order = np.argsort(-ranked, kind="stable")
    stays = protected.copy()
    stays[candidates[order[: n_keep - n_protected]]] = True
    return np.flatnonzero(stays).astype(np.int32)


def plan_eviction(scores: Sequence[F32], allocation: I32, protected: Bool) -> EvictionPlan:
    """Choose the rows that stay in every layer and KV head.

    Parameters
    ----------
    scores : sequence over layers of ndarray of shape (n_head_kv, n_kv)
        Higher means keep.
    allocation : ndarray of shape (n_layer, n_head_kv), int32
        Rows that may stay. At ``n_kv`` or more, all of them do.
    protected : ndarray of shape (n_kv,) or (n_layer, n_head_kv, n_kv), bool
        Rows that stay whatever their score.

    Returns
    -------
    EvictionPlan
        Keeps exactly ``min(allocation, n_kv)`` rows in each segment.

    Raises
    ------
    PlanError
        If the shapes disagree, or more rows are protected than may stay.
    """
    shapes = {layer.shape for layer in scores}
    if len(shapes) != 1 or allocation.shape != (len(scores), *next(iter(shapes))[:1]):
        raise PlanError(
            "scores must be one (n_head_kv, n_kv) array a layer and match the allocation;"
            f" got {len(scores)} layers of {sorted(shapes)} and an allocation of {allocation.shape}"
        )
    n_kv = scores[0].shape[1]
    if protected.shape not in ((n_kv,), (*allocation.shape, n_kv)):
        raise PlanError(
            f"protected must be ({n_kv},) or {(*allocation.shape, n_kv)}; got {protected.shape}"
        )
    masks = np.broadcast_to(protected, (*allocation.shape, n_kv))
    keep = tuple(
        tuple(
            select_keep(head_scores, mask, int(n_keep))
            for head_scores, mask, n_keep in zip(layer_scores, layer_masks, layer_keep, strict=True)
        )
        for layer_scores, layer_masks, layer_keep in zip(scores, masks, allocation, strict=True)
    )
    return EvictionPlan(n_kv, allocation.copy(), keep)
