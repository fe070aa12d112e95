"""Serve a policy's request for all layers: on the device, or in NumPy from copied tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from restkv_local import reference
from restkv_local.model.output_factors import hadamard
from restkv_local.native import NativeContext, _bindings
from restkv_local.types import (
    F32,
    F64,
    I32,
    Observation,
    ObservationRequest,
    Reduction,
    Tracked,
    half_window_means,
)

# Queries contracted at once: attention of all of them over all rows has to fit the compute buffer.
_TILE = 64

# Positions ahead that expected attention averages over, as in the paper.
_N_FUTURE = 512


@dataclass(slots=True)
class QueryMoments:
    """First and second moment of every query seen, before RoPE.

    Attributes
    ----------
    n : int
        Queries seen.
    first : ndarray of shape (n_layer, n_head, d), float64
        Sum of ``q``.
    second : ndarray of shape (n_layer, n_head, d, d), float64
        Sum of ``q q'``.
    """

    n: int = 0
    first: F64 | None = None
    second: F64 | None = None
    _ahead: dict[int, F64] = field(default_factory=dict)

    def add(self, native: NativeContext, n: int) -> None:
        """Add the newest ``n`` queries."""
        basis = _key_basis(native)
        for n_skip in range(0, n, _TILE):
            first, second = native.query_moments(min(_TILE, n - n_skip), n_skip, basis)
            total = first.astype(np.float64)
            total2 = second.astype(np.float64)
            self.first = total if self.first is None else self.first + total
            self.second = total2 if self.second is None else self.second + total2
        self.n += n

    def mean(self, layer: int) -> tuple[F64, F64]:
        """Return mean (n_head, d) and raw second moment (n_head, d, d)."""
        assert self.first is not None
        assert self.second is not None
        return self.first[layer] / self.n, self.second[layer] / self.n

    def rotation(self, native: NativeContext, layer: int) -> F64:
        """Return the mean RoPE matrix of the positions ahead: (d, d)."""
        if layer not in self._ahead:
            self._ahead[layer] = native.mean_rotation(layer, 0, _N_FUTURE).astype(np.float64)
        # Rotations add up, so one position on top of the mean over the first ones is enough.
        return native.mean_rotation(layer, native.position + 1, 1) @ self._ahead[layer]


def _key_basis(native: NativeContext) -> F32 | None:
    """Return the matrix that keys are stored multiplied by, its own inverse; None if there is none."""
    if not native.k_block:
        return None
    n_block = native.layers[0].head_dim_k // native.k_block
    basis: F32 = np.kron(np.eye(n_block, dtype=np.float32), hadamard(native.k_block))
    return basis


def observe_nothing(positions: I32, event: int, tracked: F32 | None = None) -> list[Observation]:
    """Return what a policy without attention may look at: positions and what it tracks."""
    return [
        Observation(
            layer=i,
            n_layer=len(positions),
            n_obs=0,
            n_window=0,
            positions=layer,
            tracked=None if tracked is None else tracked[i],
            event=event,
        )
        for i, layer in enumerate(positions)
    ]


def observe_native(
    native: NativeContext,
    request: ObservationRequest,
    n_obs: int,
    positions: I32,
    event: int,
    tracked: F32 | None = None,
    moments: QueryMoments | None = None,
) -> list[Observation]:
    """Contract on the device; only reduced arrays reach Python.

    Parameters
    ----------
    n_obs : int
        Newest queries to use, at most ``native.n_observed``. Their rows are the newest ones.
    positions : ndarray of shape (n_layer, n_head_kv, n_kv), int32
        True positions of the rows in use, -1 where a KV head has none.
    event : int
        How many evictions the session has seen before.
    tracked : ndarray of the same shape, float32, optional
        What the policy tracks.
    moments : QueryMoments, optional
        Of every query seen, for expected attention.
    """
    key_score = _key_score(native, request, positions, moments)
    linear: list[Reduction] = [name for name in request.reductions if name not in _bindings.ROWS]
    flagged: list[Reduction] = [name for name in request.reductions if name in _bindings.ROWS]
    flagged.sort(key=list(_bindings.ROWS).index)
    weights = np.array([request.weights(name, n_obs) for name in linear], np.float32)
    flags = sum(_bindings.ROWS[name] for name in flagged)
    if request.distance == "aggregate":
        flags |= _bindings.AGGREGATE
    if request.distance == "per_query":
        flags |= _bindings.PER_QUERY
    if request.distance != "none" and request.reductions[0] == "max":
        flags |= _bindings.REDUCE_MAX
    if request.value_norm:
        flags |= _bindings.VALUE_NORM
    if request.past_only:
        flags |= _bindings.PAST_ONLY
    if request.drift:
        flags |= _bindings.DRIFT
    attention: list[Any] = [()] * len(native.layers)
    metric = drift = None
    if flags or linear:
        n_window = max(n_obs, 1)
        attention, metric, drift = native.score(
            flags=flags,
            weights=weights.reshape(len(linear), n_window),
            tau=request.tau,
            top_k=request.top_k,
            positions=list(positions) if request.drift else None,
        )
    names = [*linear, *flagged]
    return [
        Observation(
            layer=i,
            n_layer=len(native.layers),
            n_obs=n_obs,
            n_window=n_obs,
            positions=positions[i],
            attention=dict(zip(names, attention[i], strict=True)),
            distance=metric[i] if metric and request.distance == "aggregate" else None,
            indicator=metric[i] if metric and request.distance == "per_query" else None,
            value_norm=metric[i] if metric and request.value_norm else None,
            drift=half_window_means(drift[i]) if drift else None,
            key_score=None if key_score is None else key_score[i],
            tracked=None if tracked is None else tracked[i],
            event=event,
        )
        for i in range(len(native.layers))
    ]


def _key_score(
    native: NativeContext, request: ObservationRequest, positions: I32, moments: QueryMoments | None
) -> F32 | None:
    """Serve ``request.key_score`` for all layers."""
    if request.key_score == "none":
        return None
    if request.key_score == "difference":
        return native.key_direction()
    assert moments is not None, "the policy tracks queries"
    means, roots = [], []
    basis = _key_basis(native)
    for i in range(len(native.layers)):
        scale, _, _ = native.attention_params(i)
        mean, moment = moments.mean(i)
        rotation = moments.rotation(native, i)
        spread = rotation @ (moment - mean[:, :, None] * mean[:, None, :]) @ rotation.T
        values, vectors = np.linalg.eigh(spread)
        # Rounding leaves directions without variance a little below 0.
        lengths = scale * np.sqrt(np.maximum(values, 0) / 2)
        root = lengths[:, :, None] * vectors.swapaxes(1, 2)
        ahead = scale * mean @ rotation.T
        means.append(ahead if basis is None else ahead @ basis)
        roots.append(root if basis is None else root @ basis)
    logits = native.expected(np.stack(means), np.stack(roots)).astype(np.float64)
    groups = logits.shape[1] // positions.shape[1]
    logits[np.repeat(positions < 0, groups, axis=1)] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    expected: F64 = weights / weights.sum(axis=-1, keepdims=True)
    return expected.astype(np.float32)


def track_native(native: NativeContext, track: Tracked, n: int, n_seen: int, tracked: F32) -> None:
    """Bring what a policy tracks up to date with the newest ``n`` queries.

    Parameters
    ----------
    n_seen : int
        Tokens seen: the newest query's position is ``n_seen - 1``.
    tracked : ndarray of shape (n_layer, n_head_kv, n_kv), float32
        Changed in place; see ``Policy.track``.
    """
    for n_skip in range(0, n, _TILE):
        n_window = min(_TILE, n - n_skip)
        if track == "sum":
            ones = np.ones((1, n_window), np.float32)
            attention, _, _ = native.score(flags=0, weights=ones, n_skip=n_skip)
            for layer, (received,) in zip(tracked, attention, strict=True):
                layer += received.reshape(layer.shape[0], -1, layer.shape[1]).mean(axis=1)
            continue
        nothing = np.empty((0, n_window), np.float32)
        if track == "repeat":
            attention, _, _ = native.score(flags=_bindings.MAX, weights=nothing, n_skip=n_skip)
            for layer, (most,) in zip(tracked, attention, strict=True):
                received = most.reshape(layer.shape[0], -1, layer.shape[1]).max(axis=1)
                np.maximum(layer, received, out=layer)
        else:
            attention, _, _ = native.score(flags=_bindings.LAST_USE, weights=nothing, n_skip=n_skip)
            first = n_seen - n_skip - n_window  # position of the window's oldest query
            for layer, (order,) in zip(tracked, attention, strict=True):
                newest = order.reshape(layer.shape[0], -1, layer.shape[1]).max(axis=1)
                np.maximum(layer, np.where(newest > 0, first + newest - 1, layer), out=layer)


def attended(native: NativeContext, n: int, n_seen: int, positions: I32) -> F64:
    """Sum over layers and heads of the squared attention that the newest ``n`` queries paid at most.

    Squares, because heads that look at one place say where an answer comes from, and those that look
    everywhere do not.

    Returns
    -------
    ndarray of shape (n_seen,), float64
        For each token of the sequence, evicted ones 0.
    """
    received = np.zeros(n_seen)
    nothing = np.empty((0, n), np.float32)
    attention, _, _ = native.score(flags=_bindings.MAX, weights=nothing)
    for layer, (most,) in zip(positions, attention, strict=True):
        power = (
            np.square(most, dtype=np.float64).reshape(len(layer), -1, layer.shape[1]).sum(axis=1)
        )
        present = layer >= 0
        np.add.at(received, layer[present], power[present])
    return received


def observe_numpy(
    native: NativeContext,
    request: ObservationRequest,
    n_obs: int,
    positions: I32,
    event: int,
    factors: Callable[[int], F32],
    tracked: F32 | None = None,
    moments: QueryMoments | None = None,
) -> list[Observation]:
    """Do the same with the NumPy oracle: slow, for checks and ``--scoring numpy``.

    Parameters
    ----------
    factors : callable
        Pool layer to output factors (n_head, d, d), as they were uploaded.
    """
    observations = []
    n_kv = positions.shape[-1]
    rows = np.arange(n_kv - n_obs, n_kv, dtype=np.int32)
    basis = _key_basis(native)
    for i in range(len(native.layers)):
        scale, softcap, _ = native.attention_params(i)
        k = native.read(i, "k")
        ahead = None
        if moments is not None:
            ahead = (*moments.mean(i), moments.rotation(native, i))
            k = k if basis is None else k @ basis
        observations.append(
            reference.observe(
                native.read(i, "q", n_obs),
                k,
                native.read(i, "v"),
                factors(i) if request.projects else None,
                request,
                positions[i],
                rows,
                scale,
                softcap,
                i,
                n_layer=len(native.layers),
                n_window=n_obs,
                moments=ahead,
                tracked=None if tracked is None else tracked[i],
                event=event,
            )
        )
    return observations
