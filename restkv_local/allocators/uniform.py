"""Uniform: the same for every layer and KV head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.allocators.base import Allocator, Demand, fit_total
from restkv_local.types import I32


@dataclass(frozen=True, kw_only=True)
class Uniform(Allocator):
    """Every layer and KV head gets the budget itself.

    Where a cache was filled under another allocation and a head has fewer rows
    than that, the others share what it leaves.
    """

    name: ClassVar[str] = "uniform"
    summary: ClassVar[str] = "the same for every layer and KV head"
    source: ClassVar[str] = "none"
    equal: ClassVar[bool] = True

    def allocate(self, demand: Demand) -> I32:
        """Give ``demand.budget`` to each: (n_layer, n_head_kv)."""
        return fit_total(np.ones(demand.n_rows.shape), demand)
