"""SnapKV: keep the tokens that the newest queries look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from restkv_local.config import DEFAULTS, Config
from restkv_local.policies.base import Group, Policy, reduce_groups, to_scores
from restkv_local.policies.smoothing import Pooling, smooth_rows
from restkv_local.types import F32, Observation, ObservationRequest


@dataclass(frozen=True, kw_only=True)
class SnapKV(Policy):
    """Mean attention of the observed queries, pooled over neighbouring rows.

    The paper sums over the queries, which ranks alike. Its repository selects
    per query head; here heads of a group are combined before pooling.

    Attributes
    ----------
    kernel : int
        Neighbourhood in rows, odd.
    pooling : {"mean", "max"}
        The repository's default is the mean, its LongBench runs take the maximum. Its mean counts zeros beyond
        the ends; here the first and the last row stand in, as for every policy.
    group : {"mean", "max"}
        How query heads that share a KV head are combined.

    References
    ----------
    .. [1] Li et al., "SnapKV", 2024, arXiv:2404.14469.
    """

    name: ClassVar[str] = "snapkv"
    summary: ClassVar[str] = "most attention from the newest queries, pooled over neighbours"
    source: ClassVar[str] = "Li et al., SnapKV, 2024, arXiv:2404.14469"

    kernel: int = DEFAULTS.kernel
    pooling: Pooling = "mean"
    group: Group = "mean"

    @classmethod
    def from_config(cls, config: Config) -> SnapKV:
        """Build the policy from the options it understands."""
        return cls(kernel=config.kernel)

    def request(self, n_obs: int, max_position: int, n_select: int) -> ObservationRequest:
        """Ask for the mean attention."""
        return ObservationRequest(reductions=("mean",))

    def score(self, observation: Observation) -> F32:
        """Score the rows of one layer: (n_head_kv, n_kv)."""
        attention = observation.attention["mean"]
        grouped = reduce_groups(attention, observation.n_head_kv, self.group)
        smoothed = smooth_rows(
            grouped,
            observation.n_window,
            [(self.kernel, 0)],
            self.pooling,
            n_absent=observation.n_absent,
        )
        return to_scores(smoothed)
