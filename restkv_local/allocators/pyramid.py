"""Pyramid: more rows for the lower layers, fewer for the upper ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.allocators.base import Allocator, Demand, fit_total
from restkv_local.errors import ConfigError
from restkv_local.types import I32


@dataclass(frozen=True, kw_only=True)
class Pyramid(Allocator):
    """A straight line over the layers, alike for the KV heads of one.

    Of the rows that scores choose, ``base`` in a KV head on average, the last
    layer gets ``base / beta`` and the first ``2 * base - base / beta``, or all
    it has, if that is less; the last one then gets what keeps the mean.
    Protected rows come on top, as the window does in the source.

    Attributes
    ----------
    beta : float
        How much less than the average the last layer gets; at least 1, which
        is uniform. Larger is steeper.

    Notes
    -----
    The source has no pyramid over a text shorter than ``2 * base`` rows. Here
    that is what the cache holds, in bounded prefill the budget and little more, and the
    rule would leave every larger budget uniform: the line only flattens.

    The source divides whole numbers and loses what is left over; kvpress
    divides exactly. Here the line is exact and its values are rounded so that
    the total is met. kvpress also counts the window into ``base``: with nothing
    protected its line is this one. It falls back to uniform where the last
    layer would get less than the window, which on top of the window cannot be.

    Layers are counted among those that are evicted. A first layer that holds
    less than the average, in a cache that was filled under another allocation,
    gets a uniform split too.

    References
    ----------
    .. [1] Cai et al., "PyramidKV", 2024, arXiv:2406.02069;
       repository Zefan-Cai/KVCache-Factory.
    """

    name: ClassVar[str] = "pyramid"
    summary: ClassVar[str] = "more rows for lower layers, fewer for upper ones, on a straight line"
    source: ClassVar[str] = "Cai et al., PyramidKV, 2024, arXiv:2406.02069"

    beta: float = 20.0

    def __post_init__(self) -> None:
        """Refuse a pyramid that stands on its head."""
        if not self.beta >= 1:
            raise ConfigError(f"beta must be at least 1; got beta={self.beta}")

    def allocate(self, demand: Demand) -> I32:
        """Split by layer: (n_layer, n_head_kv)."""
        least = demand.least
        n_layer = least.shape[0]
        base = (demand.total - int(least.sum())) / least.size
        room = float((demand.most - least)[0].mean())
        steep = 2 * base - base / self.beta
        high = max(min(steep, room), base)
        # From 1 in the first layer to -1 in the last; less the mean it is 0 where there is only one.
        tilt = np.linspace(1.0, -1.0, n_layer)
        selected = base + (high - base) * (tilt - tilt.mean())
        return fit_total(least + selected[:, None], demand)
