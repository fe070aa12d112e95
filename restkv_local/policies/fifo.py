"""FIFO: keep the newest tokens, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.policies.base import Policy
from restkv_local.types import F32, Observation


@dataclass(frozen=True, kw_only=True)
class Fifo(Policy):
    """Newer is better; the first tokens go like any other.

    What a plain sliding window does to a model trained without one.
    """

    name: ClassVar[str] = "fifo"
    summary: ClassVar[str] = "newest tokens only, the first ones go too"
    source: ClassVar[str] = "plain sliding window"
    keeps_sinks: ClassVar[bool] = False

    def score(self, observation: Observation) -> F32:
        """Score the rows of one layer: (n_head_kv, n_kv), in [0, 1)."""
        # Rows, not positions: those stop being distinct in float32 at 2**24 tokens.
        recency = np.arange(observation.n_kv, dtype=np.float32) / observation.n_kv
        return np.tile(recency, (observation.n_head_kv, 1))
