"""Small observations, made by the reference from random tensors. Keyword-only, defaults small."""

from __future__ import annotations

import numpy as np

from restkv_local.reference import observe
from restkv_local.types import Observation, ObservationRequest


def make_layer(
    *, n_head=4, n_head_kv=2, n_kv=24, n_obs=8, head_dim=6, spread=2.0, seed=0, dtype=np.float32
):
    """Random q, k, v and output factors of one layer; ``spread`` sharpens the attention."""
    rng = np.random.default_rng(seed)
    n_obs = min(n_obs, n_kv)
    q = spread * rng.standard_normal((n_head, n_obs, head_dim))
    k = rng.standard_normal((n_head_kv, n_kv, head_dim))
    v = rng.standard_normal((n_head_kv, n_kv, head_dim))
    factors = rng.standard_normal((n_head, head_dim, head_dim))
    return tuple(array.astype(dtype) for array in (q, k, v, factors))


def rows_of_window(n_kv, n_obs):
    """Rows of the newest ``n_obs`` tokens."""
    return np.arange(n_kv - min(n_obs, n_kv), n_kv, dtype=np.int32)


def positions_with_gaps(n_head_kv, n_kv, seed=0):
    """True positions after earlier evictions: ascending, other gaps in each head."""
    gaps = np.random.default_rng(seed).integers(1, 9, (n_head_kv, n_kv))
    return np.cumsum(gaps, axis=1).astype(np.int32)


def make_observation(
    request: ObservationRequest | None, *, layer=0, event=0, tensors=None, **shape
) -> Observation:
    """One layer as ``request`` wants it; ``tensors`` (q, k, v, factors) override random ones."""
    q, k, v, factors = tensors or make_layer(**shape)
    n_kv, n_obs = k.shape[1], q.shape[1]
    positions = positions_with_gaps(k.shape[0], n_kv)
    if request is None:
        return Observation(layer=layer, n_obs=0, n_window=0, positions=positions, event=event)
    return observe(
        q,
        k,
        v,
        factors,
        request,
        positions,
        rows_of_window(n_kv, n_obs),
        q.shape[2] ** -0.5,
        layer=layer,
        event=event,
    )


def make_one_hot_layer(hot, **shape):
    """Tensors whose every query gives all of its attention, exactly 1, to row ``hot``."""
    q, k, v, factors = make_layer(**shape)
    q = np.ones_like(q)
    k = np.zeros_like(k)
    k[:, hot] = 2000.0
    return q, k, v, factors
