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


def mark_absent(positions, n_absent):
    """Take the oldest rows of each head away; ``n_absent`` is a number, or one for each head."""
    absent = np.broadcast_to(np.asarray(n_absent), positions.shape[:1])
    places = np.arange(positions.shape[1])
    return np.where(places < absent[:, None], np.int32(-1), positions)


def make_tracked(track, positions, seed=0):
    """What the engine would have tracked: sums or shares of attention, or positions from the row's own on."""
    rng = np.random.default_rng(seed)
    if track == "sum":
        return rng.exponential(size=positions.shape).astype(np.float32)
    if track == "repeat":
        return rng.random(positions.shape).astype(np.float32)
    if track == "last_use":
        newest = positions.max(axis=1, keepdims=True)
        return rng.integers(positions, newest, endpoint=True).astype(np.float32)
    return None


def make_moments(q, seed=0):
    """Mean and second moment of as many queries as it takes, and a mean rotation."""
    rng = np.random.default_rng(seed)
    queries = q[:, :1] + rng.standard_normal((q.shape[0], 50, q.shape[2]))  # (h, w, d)
    moment = np.einsum("hwd,hwe->hde", queries, queries) / 50
    rotation = np.linalg.qr(rng.standard_normal((q.shape[2],) * 2))[0] * 0.9
    return queries.mean(axis=1), moment, rotation


def make_observation(
    request: ObservationRequest | None,
    *,
    layer=0,
    n_layer=1,
    event=0,
    tensors=None,
    positions=None,
    track="none",
    n_absent=0,
    **shape,
) -> Observation:
    """One layer as ``request`` wants it; ``tensors`` (q, k, v, factors) override random ones."""
    q, k, v, factors = tensors or make_layer(**shape)
    n_kv, n_obs = k.shape[1], q.shape[1]
    if positions is None:
        positions = positions_with_gaps(k.shape[0], n_kv)
    positions = mark_absent(positions, n_absent)
    tracked = make_tracked(track, positions)
    if request is None:
        return Observation(
            layer=layer,
            n_layer=n_layer,
            n_obs=0,
            n_window=0,
            positions=positions,
            tracked=tracked,
            event=event,
        )
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
        n_layer=n_layer,
        event=event,
        moments=make_moments(q) if request.key_score == "expected" else None,
        tracked=tracked,
    )


def make_one_hot_layer(hot, **shape):
    """Tensors whose every query gives all of its attention, exactly 1, to row ``hot``."""
    q, k, v, factors = make_layer(**shape)
    q = np.ones_like(q)
    k = np.zeros_like(k)
    k[:, hot] = 2000.0
    return q, k, v, factors
