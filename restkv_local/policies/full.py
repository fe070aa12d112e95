"""Full cache: keep everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.policies.base import Policy
from restkv_local.types import F32, Observation


@dataclass(frozen=True, kw_only=True)
class Full(Policy):
    """No eviction: the reference that every budget is measured against."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "no eviction: the reference, memory grows with the text"
    source: ClassVar[str] = "none"
    evicts: ClassVar[bool] = False

    def score(self, observation: Observation) -> F32:
        """Score all rows alike: (n_head_kv, n_kv)."""
        return np.zeros((observation.n_head_kv, observation.n_kv), np.float32)
