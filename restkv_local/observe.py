"""Serve a policy's request for all layers: on the device, or in NumPy from copied tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from restkv_local import reference
from restkv_local.native import NativeContext, _bindings
from restkv_local.types import (
    F32,
    I32,
    Observation,
    ObservationRequest,
    Reduction,
    half_window_means,
)


def observe_nothing(positions: I32, event: int) -> list[Observation]:
    """Return what a policy without attention may look at: positions alone."""
    return [
        Observation(layer=i, n_obs=0, n_window=0, positions=layer, event=event)
        for i, layer in enumerate(positions)
    ]


def observe_native(
    native: NativeContext, request: ObservationRequest, n_obs: int, positions: I32, event: int
) -> list[Observation]:
    """Contract on the device; only reduced arrays reach Python.

    Parameters
    ----------
    n_obs : int
        Newest queries to use, at most ``native.n_observed``. Their rows are the newest ones.
    positions : ndarray of shape (n_layer, n_head_kv, n_kv), int32
        True positions of the rows in use.
    event : int
        How many evictions the session has seen before.
    """
    linear: list[Reduction] = [name for name in request.reductions if name != "max"]
    weights = np.array([request.weights(name, n_obs) for name in linear], np.float32)
    flags = 0
    if "max" in request.reductions:
        flags |= _bindings.MAX
    if request.distance == "aggregate":
        flags |= _bindings.AGGREGATE
    if request.distance == "per_query":
        flags |= _bindings.PER_QUERY
    if request.distance != "none" and request.reductions[0] == "max":
        flags |= _bindings.REDUCE_MAX
    if request.past_only:
        flags |= _bindings.PAST_ONLY
    if request.drift:
        flags |= _bindings.DRIFT
    attention, metric, drift = native.score(
        flags=flags,
        weights=weights.reshape(len(linear), n_obs),
        tau=request.tau,
        top_k=request.top_k,
        positions=list(positions) if request.drift else None,
    )
    names: list[Reduction] = [*linear, "max"] if flags & _bindings.MAX else linear
    return [
        Observation(
            layer=i,
            n_obs=n_obs,
            n_window=n_obs,
            positions=positions[i],
            attention=dict(zip(names, attention[i], strict=True)),
            distance=metric[i] if metric and request.distance == "aggregate" else None,
            indicator=metric[i] if metric and request.distance == "per_query" else None,
            drift=half_window_means(drift[i]) if drift else None,
            event=event,
        )
        for i in range(len(native.layers))
    ]


def observe_numpy(
    native: NativeContext,
    request: ObservationRequest,
    n_obs: int,
    positions: I32,
    event: int,
    factors: Callable[[int], F32],
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
    for i in range(len(native.layers)):
        scale, softcap, _ = native.attention_params(i)
        observations.append(
            reference.observe(
                native.read(i, "q", n_obs),
                native.read(i, "k"),
                native.read(i, "v"),
                factors(i) if request.project else None,
                request,
                positions[i],
                rows,
                scale,
                softcap,
                i,
                n_window=n_obs,
                event=event,
            )
        )
    return observations
