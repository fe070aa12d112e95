"""Uniform: the same for every layer and KV head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.allocators.base import Allocator
from restkv_local.types import F32, I32


@dataclass(frozen=True, kw_only=True)
class Uniform(Allocator):
    """Every layer and KV head gets the budget itself."""

    name: ClassVar[str] = "uniform"
    summary: ClassVar[str] = "the same for every layer and KV head"

    def allocate(
        self, budget: int, n_layer: int, n_head_kv: int, scores: Sequence[F32] | None = None
    ) -> I32:
        """Give ``budget`` to each: (n_layer, n_head_kv)."""
        return np.full((n_layer, n_head_kv), budget, np.int32)
