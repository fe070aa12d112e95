"""Devices: what layers on one device cannot hold is no room of another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from restkv_local.allocators.base import Demand, fit_total
from restkv_local.types import I32


def fit_devices(allocation: I32, demand: Demand, devices: Sequence[int]) -> I32:
    """Scale an allocation so that the layers of each device get that device's rows.

    Each device has a pool of its own, with as many rows for each KV head as any other's. What an allocator
    wants to move between devices is shared out on either, in proportion to what it gave there.

    Parameters
    ----------
    allocation : ndarray of shape (n_layer, n_head_kv), int32
        Rows to keep, of one total.
    demand : Demand
        What was split.
    devices : sequence of int, of length n_layer
        Device of each layer.

    Returns
    -------
    ndarray of shape (n_layer, n_head_kv), int32
        ``allocation`` itself where there is one device.

    Raises
    ------
    PlanError
        If the protected rows of a device exceed its total.
    """
    if len(set(devices)) == 1:
        return allocation
    fitted = np.empty_like(allocation)
    for device in set(devices):
        layers = np.flatnonzero(np.asarray(devices) == device)
        part = replace(
            demand,
            n_rows=demand.n_rows[layers],
            candidates=demand.candidates[layers],
            scores=demand.scores[layers],
            observations=[demand.observations[layer] for layer in layers.tolist()],
        )
        fitted[layers] = fit_total(allocation[layers].astype(np.float64), part)
    return fitted
