"""The native contractions in plain NumPy: slow, readable, and what the tests believe.

Everything is computed in float64; ``observe`` rounds to float32 at the end,
since that is what a policy receives from either backend.
"""

from __future__ import annotations

import numpy as np

from restkv_local.types import (
    F32,
    F64,
    I32,
    REST_MIN,
    Bool,
    Observation,
    ObservationRequest,
    Reduction,
    half_window_means,
)


def window_attention(
    q: F32 | F64,
    k: F32 | F64,
    scale: float,
    softcap: float = 0.0,
    *,
    q_row: I32,
    sinks: F32 | F64 | None = None,
    present: Bool | None = None,
) -> F64:
    """Attention of the observed queries over all rows.

    Parameters
    ----------
    q : ndarray of shape (n_head, n_obs, d)
        Queries after RoPE, oldest first.
    k : ndarray of shape (n_head_kv, n_kv, d)
        Keys after RoPE.
    scale : float
        Factor of the logits.
    softcap : float
        Bound of the logits, ``softcap * tanh(logit / softcap)``; 0 for none.
    q_row : ndarray of shape (n_obs,), int32
        Row of each query's own token: a query sees the rows up to its own.
    sinks : ndarray of shape (n_head,), optional
        Learned logits that take attention without having a row.
    present : ndarray of shape (n_head_kv, n_kv), bool, optional
        False where a KV head has no row: attention 0. All rows by default.

    Returns
    -------
    ndarray of shape (n_head, n_obs, n_kv), float64
        Sums to 1 over the last axis, less what the sinks take; 0 throughout
        where a query sees no row.
    """
    keys = _per_query_head(k, q.shape[0])
    logits: F64 = np.einsum("hwd,hnd->hwn", q, keys, dtype=np.float64) * scale
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    visible = np.arange(k.shape[1]) <= q_row[:, None]  # (n_obs, n_kv)
    if present is not None:
        visible = visible & _per_query_head(present, q.shape[0])[:, None, :]  # (h, w, n)
    logits = np.where(visible, logits, -np.inf)
    # (n_head, 1, 1); -inf: a sink that takes nothing
    sink = np.full((q.shape[0], 1, 1), -np.inf) if sinks is None else sinks[:, None, None]
    top = np.maximum(logits.max(axis=-1, keepdims=True), sink)
    top = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(logits - top)
    total = weights.sum(axis=-1, keepdims=True) + np.exp(sink - top)
    attn: F64 = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return attn


def reduce_queries(values: F64, request: ObservationRequest, reduction: Reduction) -> F64:
    """Reduce (n_head, n_obs, n_kv) over the queries to (n_head, n_kv)."""
    if reduction == "max":
        largest: F64 = values.max(axis=1)
        return largest
    if reduction == "square":
        square: F64 = (values**2).mean(axis=1)
        return square
    if reduction == "entropy":
        # 0 log 0 is 0: the least positive number stands in for 0 in the logarithm.
        logs = np.log(np.maximum(values, np.finfo(np.float64).tiny))
        entropy: F64 = -(values * logs).mean(axis=1)
        return entropy
    weights = request.weights(reduction, values.shape[1]).astype(np.float64)
    reduced: F64 = np.einsum("w,hwn->hn", weights, values)
    return reduced


def output_distance(
    attn: F64, v: F32 | F64, factors: F32 | F64 | None, n_past: int | None = None
) -> F64:
    """Distance of each value to the attention output, ``||(v_n - o) F||_2``.

    Parameters
    ----------
    attn : ndarray of shape (n_head, n_obs, n_kv)
        Weights of ``o = sum_n attn_n v_n``.
    v : ndarray of shape (n_head_kv, n_kv, d)
        Values.
    factors : ndarray of shape (n_head, d, d_out), optional
        Output projection of each query head, ``y = x @ F``; without it the
        distance is taken between plain values.
    n_past : int, optional
        ``o`` sums over the first ``n_past`` rows only.

    Returns
    -------
    ndarray of shape (n_head, n_obs, n_kv), float64
    """
    values = _per_query_head(v, attn.shape[0]).astype(np.float64)
    outputs = np.einsum("hwn,hnd->hwd", attn[..., :n_past], values[:, :n_past])
    distance = np.empty_like(attn)
    for w in range(attn.shape[1]):
        # By direct difference: expanded squares cancel where one row has all the attention.
        difference = values - outputs[:, w, None, :]
        image = difference if factors is None else difference @ factors
        distance[:, w] = np.linalg.norm(image, axis=-1)
    return distance


def output_change(
    attn: F64,
    v: F32 | F64,
    factors: F32 | F64 | None,
    *,
    tau: float = 1.0,
    n_past: int | None = None,
) -> F64:
    """Compute the indicator of each query, ``a/(1-a) * ||(v_n - o) F||_2 ** tau``.

    With ``tau`` 1 and the full output this is exactly how far the head's output
    moves when row ``n`` alone is removed.

    Returns
    -------
    ndarray of shape (n_head, n_obs, n_kv), float64
        Where ``1 - a`` is below 1e-6, the bound of `distance_without`.
    """
    rest = 1.0 - attn
    odds = attn / np.maximum(rest, REST_MIN)
    distance = output_distance(attn, v, factors, n_past)
    taken = rest < REST_MIN
    bound = distance_without(attn, distance, taken)
    change: F64 = np.where(taken, bound**tau, odds * distance**tau)
    return change


def distance_without(attention: F64, distance: F64, taken: Bool) -> F64:
    """How far the output may move where one row has all the attention.

    There ``o`` and ``v_n`` agree in every digit, the measured distance is
    rounding noise or 0, and the most wanted row would rank last. What is left
    without it is a mean of the other values, and by the triangle inequality
    their mean distance bounds the move.

    Parameters
    ----------
    attention, distance : ndarray of shape (..., n_kv), float64
    taken : ndarray of shape (..., n_kv), bool
        The rows with all the attention.

    Returns
    -------
    ndarray of shape (..., 1), float64
        0 where there is no other row.
    """
    # The tiny constant makes it a plain mean where the others have no attention at all.
    weights = np.where(taken, 0.0, attention + np.finfo(np.float64).tiny)
    total = weights.sum(axis=-1, keepdims=True)
    moved = (weights * distance).sum(axis=-1, keepdims=True)
    mean: F64 = np.divide(moved, total, out=np.zeros_like(total), where=total > 0)
    return mean


def set_error(attn: F64, v: F32 | F64, w_o: F32 | F64 | None, evicted: Bool) -> F64:
    """Change of the output when a whole set of rows is removed, without approximation.

    Parameters
    ----------
    attn : ndarray of shape (n_head, n_obs, n_kv)
        Attention before the removal.
    v : ndarray of shape (n_head_kv, n_kv, d)
        Values.
    w_o : ndarray of shape (n_head, d, d_out), optional
        Output projection of each query head, ``y = x @ W_O``.
    evicted : ndarray of shape (n_kv,) or (n_head_kv, n_kv), bool
        Rows that go.

    Returns
    -------
    ndarray of shape (n_head, n_obs), float64
        ``||(o - o_without) W_O||_2``; infinite where nothing is left to see.
    """
    n_head = attn.shape[0]
    values = _per_query_head(v, n_head).astype(np.float64)
    gone = _per_query_head(np.broadcast_to(evicted, v.shape[:2]), n_head)[:, None, :]
    mass = np.where(gone, attn, 0.0).sum(axis=-1)
    # Not the sum of what stays: learned sinks keep their share of the denominator.
    rest = 1.0 - mass
    nothing = ~((attn > 0) & ~gone).any(axis=-1)
    survivors = np.where(gone, 0.0, attn) / np.where(nothing, 1.0, rest)[..., None]
    change = np.einsum("hwn,hnd->hwd", attn - survivors, values)
    image = change if w_o is None else change @ w_o
    return np.where(nothing, np.inf, np.linalg.norm(image, axis=-1))


def column_statistics(attn: F64, q_position: I32, n_visible: I32) -> tuple[F64, I32]:
    """Sum up what each row received from a chunk of queries: the figures a policy may track.

    Parameters
    ----------
    attn : ndarray of shape (n_head, n_obs, n_kv)
        Attention of the queries, oldest first.
    q_position : ndarray of shape (n_obs,), int32
        True position of each query, ascending.
    n_visible : ndarray of shape (n_obs,) or (n_head, n_obs), int32
        Rows that each query saw.

    Returns
    -------
    tuple
        Sum of the attention, (n_head, n_kv) float64, and true position of the
        newest query that gave the row at least ``1 / n_visible``, (n_head, n_kv)
        int32, -1 if none did.
    """
    received: F64 = attn.sum(axis=1)
    used = attn >= 1.0 / n_visible[..., None]  # (h, w, n)
    last_use: I32 = np.where(used, q_position[:, None], np.int32(-1)).max(axis=1)
    return received, last_use


def value_norm(v: F32 | F64, factors: F32 | F64 | None, n_head: int) -> F64:
    """Norm of each value as a query head sees it, ``||v_n F||_2``, or ``||v_n||_2`` without factors.

    Returns
    -------
    ndarray of shape (n_head, n_kv), float64
    """
    values = _per_query_head(v, n_head).astype(np.float64)
    norms: F64 = np.linalg.norm(values if factors is None else values @ factors, axis=-1)
    return norms


def key_difference(k: F32 | F64, present: Bool) -> F64:
    """Cosine of each key to the mean direction of its head's keys.

    Parameters
    ----------
    k : ndarray of shape (n_head_kv, n_kv, d)
        Keys after RoPE.
    present : ndarray of shape (n_head_kv, n_kv), bool
        False where a head has no row.

    Returns
    -------
    ndarray of shape (n_head_kv, n_kv), float64
        In [-1, 1]; 0 for a key or a mean of length 0, and where there is no row.
    """
    direction = _unit(np.where(present[..., None], k.astype(np.float64), 0.0))
    # Its length does not matter, so a sum is as good as a mean.
    anchor = _unit(direction.sum(axis=1))
    cosine: F64 = np.einsum("gnd,gd->gn", direction, anchor)
    return cosine


def expected_attention(
    mean: F64,
    moment: F64,
    rotation: F64,
    k: F32 | F64,
    scale: float,
    present: Bool,
) -> F64:
    """Attention that queries yet to come would give, if they are normally distributed.

    ``E[exp(scale q.k)] = exp(scale mu.k + scale**2/2 k'C k)`` for ``q ~ N(mu, C)``,
    where mean and covariance are those seen so far, rotated to the positions ahead.

    Parameters
    ----------
    mean : ndarray of shape (n_head, d)
        First moment of the queries before RoPE.
    moment : ndarray of shape (n_head, d, d)
        Second moment, ``E[q q']``, not centred.
    rotation : ndarray of shape (d, d)
        Mean over the positions ahead of the RoPE matrix, ``rotated = rotation @ q``.
    k : ndarray of shape (n_head_kv, n_kv, d)
        Keys after RoPE.
    scale : float
        Factor of the logits.
    present : ndarray of shape (n_head_kv, n_kv), bool
        False where a KV head has no row: attention 0.

    Returns
    -------
    ndarray of shape (n_head, n_kv), float64
        Sums to 1 over the last axis.

    References
    ----------
    .. [1] "Expected Attention", 2025, arXiv:2510.00636; NVIDIA/kvpress.
    """
    n_head = mean.shape[0]
    keys = _per_query_head(k, n_head).astype(np.float64)
    centre = mean @ rotation.T  # (h, d)
    spread = rotation @ (moment - mean[:, :, None] * mean[:, None, :]) @ rotation.T  # (h, d, d)
    logits = scale * np.einsum("hd,hnd->hn", centre, keys)
    logits += scale**2 / 2 * ((keys @ spread) * keys).sum(axis=-1)
    logits = np.where(_per_query_head(present, n_head), logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    expected: F64 = weights / weights.sum(axis=-1, keepdims=True)
    return expected


def observe(
    q: F32,
    k: F32,
    v: F32,
    factors: F32 | None,
    request: ObservationRequest,
    positions: I32,
    q_row: I32,
    scale: float,
    softcap: float = 0.0,
    layer: int = 0,
    *,
    sinks: F32 | None = None,
    n_window: int | None = None,
    event: int = 0,
    n_layer: int = 1,
    moments: tuple[F64, F64, F64] | None = None,
    tracked: F32 | None = None,
) -> Observation:
    """Serve a request from one layer's tensors.

    Parameters
    ----------
    q : ndarray of shape (n_head, n_obs, d)
        Observed queries, oldest first.
    k, v : ndarray of shape (n_head_kv, n_kv, d)
        Rows of the cache; K and V may differ in ``d``. What stands where a head
        has no row is not looked at.
    factors : ndarray of shape (n_head, d, d), optional
        Matrices with ``||x F|| = ||x W_O||``; needed if the request projects.
    request : ObservationRequest
        What to reduce.
    positions : ndarray of shape (n_head_kv, n_kv), int32
        True positions; -1 where a head has no row.
    q_row : ndarray of shape (n_obs,), int32
        Row of each query's own token.
    scale, softcap, sinks
        As in `window_attention`.
    layer, event, n_layer, tracked
        Passed through.
    n_window : int, optional
        Newest rows that belong to the window; ``n_obs`` by default.
    moments : tuple of ndarray, optional
        ``mean``, ``moment`` and ``rotation`` of `expected_attention`, for
        ``key_score="expected"``.

    Returns
    -------
    Observation

    Raises
    ------
    ValueError
        If the request projects values and there are no factors, or expects
        attention and there are no moments.
    """
    if request.projects and factors is None:
        raise ValueError("the request projects values, which needs factors (n_head, d, d)")
    if request.key_score == "expected" and moments is None:
        raise ValueError("expected attention needs the moments (mean, moment, rotation)")
    n_head, n_kv = q.shape[0], k.shape[1]
    n_window = min(q.shape[1] if n_window is None else n_window, n_kv)
    n_past = n_kv - n_window if request.past_only else n_kv
    maps = factors if request.project else None
    present = positions >= 0
    # Attention 0 does not keep NaN out of a sum: what an absent place holds may be anything.
    k, v = (np.where(present[..., None], rows, np.float32(0)) for rows in (k, v))

    reduced: dict[Reduction, F64] = {}
    distance = indicator = drift = norms = key_score = None
    if request.reductions or request.drift:
        attn = window_attention(q, k, scale, softcap, q_row=q_row, sinks=sinks, present=present)
        reduced = {name: reduce_queries(attn, request, name) for name in request.reductions}
    if request.distance == "aggregate":
        first = request.reductions[0]
        distance = output_distance(reduced[first][:, None], v, maps, n_past)[:, 0]
    elif request.distance == "per_query":
        change = output_change(attn, v, maps, tau=request.tau, n_past=n_past)
        indicator = reduce_queries(change, request, request.reductions[0])
    if request.drift:
        drift = half_window_means(_strongest_positions(attn, positions, request.top_k))
    if request.value_norm:
        norms = value_norm(v, maps, n_head)
    if request.key_score == "difference":
        key_score = key_difference(k, present)
    elif moments is not None and request.key_score == "expected":
        key_score = expected_attention(*moments, k, scale, present)
    return Observation(
        layer=layer,
        n_obs=q.shape[1],
        n_window=n_window,
        n_layer=n_layer,
        positions=positions,
        attention={name: array.astype(np.float32) for name, array in reduced.items()},
        distance=None if distance is None else distance.astype(np.float32),
        indicator=None if indicator is None else indicator.astype(np.float32),
        drift=drift,
        value_norm=None if norms is None else norms.astype(np.float32),
        key_score=None if key_score is None else key_score.astype(np.float32),
        tracked=tracked,
        event=event,
    )


def _strongest_positions(attn: F64, positions: I32, top_k: int) -> F32:
    """Mean true position of the ``top_k`` strongest rows of each query: (n_head, n_obs)."""
    by_head = _per_query_head(positions, attn.shape[0])[:, None, :]  # (n_head, 1, n_kv)
    # Ranked in float32, as the device does; equal weights rank the older row first, absent places last.
    ranked = np.where(by_head >= 0, attn.astype(np.float32), np.float32(-1))
    order = np.argsort(-ranked, axis=-1, kind="stable")[..., :top_k]
    strongest = np.take_along_axis(by_head, order, axis=-1)
    means: F64 = strongest.mean(axis=-1, where=strongest >= 0)
    return means.astype(np.float32)


def _unit(vectors: F64) -> F64:
    """Vectors of length 1 over the last axis; those of length 0 stay."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: F64 = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return unit


def _per_query_head(array: np.ndarray, n_head: int) -> np.ndarray:
    """Repeat the leading axis, KV heads, to one entry a query head."""
    return np.repeat(array, n_head // array.shape[0], axis=0)
