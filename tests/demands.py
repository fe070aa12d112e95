"""Small demands for the allocators: keyword-only, defaults small."""

from __future__ import annotations

import numpy as np

from restkv_local.allocators.base import Demand
from restkv_local.types import Observation


def attention_of(attn):
    """What CAKE asks for, of attention (n_head, n_obs, n_kv), computed the long way."""
    attn = np.asarray(attn, np.float64)
    logs = np.log(np.where(attn > 0, attn, 1.0))
    reduced = {
        "mean": attn.mean(axis=1),
        "square": (attn**2).mean(axis=1),
        "entropy": (-attn * logs).mean(axis=1),
    }
    return {name: array.astype(np.float32) for name, array in reduced.items()}


def present_rows(n_rows, n_kv):
    """Rows that are there, aligned at the newest: (n_layer, n_head_kv, n_kv)."""
    return np.arange(n_kv) >= n_kv - np.asarray(n_rows)[..., None]


def make_demand(
    *,
    budget=8,
    n_layer=3,
    n_head_kv=2,
    n_gqa=1,
    n_kv=24,
    n_rows=None,
    protected=None,
    n_most=None,
    scores=None,
    n_window=2,
    observes=True,
    seed=0,
):
    """Random scores and attention; ``n_rows`` and ``protected`` broadcast over layers and heads."""
    rng = np.random.default_rng(seed)
    shape = (n_layer, n_head_kv, n_kv)
    rows = np.broadcast_to(n_kv if n_rows is None else n_rows, shape[:2]).astype(np.int32)
    present = present_rows(rows, n_kv)
    masked = np.zeros(n_kv, bool) if protected is None else protected
    candidates = present & ~np.broadcast_to(masked, shape)
    if scores is None:
        scores = rng.random(shape, np.float32) ** rng.integers(1, 9, (*shape[:2], 1))
    return Demand(
        budget=budget,
        n_rows=rows,
        candidates=candidates,
        n_most=n_kv if n_most is None else n_most,
        scores=np.broadcast_to(scores, shape).astype(np.float32),
        observations=[
            _observe(rng, layer, there, n_gqa, n_window, observes)
            for layer, there in enumerate(present)
        ],
    )


def _observe(rng, layer, present, n_gqa, n_window, observes):
    n_head_kv, n_kv = present.shape
    positions = np.where(present, np.arange(n_kv), -1).astype(np.int32)
    if not observes:
        return Observation(layer=layer, n_obs=0, n_window=0, positions=positions)
    weights = rng.random((n_head_kv * n_gqa, 4, n_kv)) ** 9 * np.repeat(present, n_gqa, 0)[:, None]
    attention = attention_of(weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300))
    return Observation(
        layer=layer, n_obs=4, n_window=n_window, positions=positions, attention=attention
    )
