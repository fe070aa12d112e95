"""ReST-KV: keep the tokens whose removal would change the layer's output most."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from restkv_local.config import DEFAULTS, Config, Order
from restkv_local.policies.base import Group, Policy, reduce_groups, to_scores
from restkv_local.policies.smoothing import adaptive_window, smooth_rows
from restkv_local.reference import distance_without
from restkv_local.types import (
    F32,
    F64,
    REST_MIN,
    Observation,
    ObservationRequest,
    Reduction,
)


@dataclass(frozen=True, kw_only=True)
class RestKV(Policy):
    """Output reconstruction with temporal and spatial smoothing.

    A row with attention ``a`` and value ``v`` is worth
    ``a/(1-a) * ||(v - o) W_O||_2 ** tau``: how far the head's output ``o`` moves
    without it. Attention is smoothed over the observed queries, scores over
    neighbouring rows. Query heads that share a KV head are combined before the
    rows are smoothed.

    Attributes
    ----------
    reduction : Reduction
        Temporal smoothing; the paper's is ``"ema"``.
    guide_reduction : Reduction
        The same when the window is a question: its words ask for different
        things, and the last of them are the template's.
    alpha : float
        Weight of a newer query against all older ones.
    order : {"aggregate", "per_query"}
        ``"aggregate"``: smooth attention, then one indicator (the released
        runs). ``"per_query"``: one indicator a query, then smooth (the paper's
        equation).
    tau : float
        Exponent of the distance.
    use_wo : bool
        Take distances after the output projection.
    past_only : bool
        Let ``o`` sum over the rows before the window only, as released.
    adaptive : bool
        Widen and shift the neighbourhood with drift; otherwise a plain average.
    kernel : int
        Neighbourhood in rows, odd; the least one if adaptive.
    scale : float
        Positions of drift for one step of kernel and shift.
    shift_at_zero : bool
        Keep the release's shift of one row where nothing drifts.
    group : {"mean", "max"}
        How query heads that share a KV head are combined.

    Notes
    -----
    The single-row score was published earlier, without W_O, as CAOTE [2]_.
    The release keeps one row set per query head and does not combine them;
    a cache of KV heads has to, and the mean before pooling is at par there.

    References
    ----------
    .. [1] An et al., "ReST-KV", ICLR 2026, arXiv:2605.08840.
    .. [2] "CAOTE", 2025, arXiv:2504.14051.
    """

    name: ClassVar[str] = "restkv"
    summary: ClassVar[str] = "largest change of the layer's output, smoothed over time and text"
    source: ClassVar[str] = "An et al., ReST-KV, ICLR 2026, arXiv:2605.08840"

    reduction: Reduction = "ema"
    guide_reduction: Reduction = DEFAULTS.guide_reduction
    alpha: float = DEFAULTS.alpha
    order: Order = DEFAULTS.order
    tau: float = DEFAULTS.tau
    use_wo: bool = DEFAULTS.use_wo
    past_only: bool = DEFAULTS.past_only
    adaptive: bool = True
    kernel: int = DEFAULTS.kernel
    scale: float = DEFAULTS.scale
    shift_at_zero: bool = False
    group: Group = "mean"

    @classmethod
    def from_config(cls, config: Config) -> RestKV:
        """Build the policy from the options it understands."""
        return cls(
            guide_reduction=config.guide_reduction,
            alpha=config.alpha,
            order=config.order,
            tau=config.tau,
            use_wo=config.use_wo,
            past_only=config.past_only,
            kernel=config.kernel,
            scale=config.scale,
        )

    def guided(self) -> RestKV:
        """Return the policy for a question: its own reduction, and no drift.

        Each word of a question looks elsewhere, so that the halves of such a window differ by what they
        ask for, not by where the text moves to.
        """
        return replace(self, reduction=self.guide_reduction, adaptive=False)

    def request(self, n_obs: int, max_position: int, n_select: int) -> ObservationRequest:
        """Ask for reduced attention and distances, and for drift where it can matter."""
        # No drift exceeds the highest position, and below one scale it changes neither
        # kernel nor shift: leaving it out is exact, not an approximation.
        drift = self.adaptive and (self.shift_at_zero or max_position >= self.scale)
        return ObservationRequest(
            reductions=(self.reduction,),
            alpha=self.alpha,
            distance=self.order,
            project=self.use_wo,
            past_only=self.past_only,
            tau=self.tau,
            drift=drift,
            top_k=max(n_select, 1) if drift else 0,
        )

    def score(self, observation: Observation) -> F32:
        """Score the rows of one layer: (n_head_kv, n_kv)."""
        indicator = self._indicator(observation)
        grouped = reduce_groups(indicator, observation.n_head_kv, self.group)
        smoothed = smooth_rows(
            grouped,
            observation.n_window,
            self._windows(observation),
            n_absent=observation.n_absent,
        )
        return to_scores(smoothed)

    def _indicator(self, observation: Observation) -> F32 | F64:
        """Unsmoothed indicator of each query head: (n_head, n_kv)."""
        if self.order == "per_query":
            assert observation.indicator is not None, "score() got less than request() asked for"
            return observation.indicator
        assert observation.distance is not None, "score() got less than request() asked for"
        # float32 as long as it can hold them: half the time, and no order that means anything changes.
        attention = observation.attention[self.reduction]
        distance = observation.distance
        rest = 1.0 - attention
        odds = attention / np.maximum(rest, np.float32(REST_MIN))
        power = distance if self.tau == 1.0 else distance.astype(np.float64) ** self.tau
        indicator: F64 = np.multiply(odds, power, dtype=np.float64)
        taken = rest < REST_MIN
        if taken.any():
            bound = distance_without(
                attention.astype(np.float64), distance.astype(np.float64), taken
            )
            indicator = np.where(taken, bound**self.tau, indicator)
        return indicator

    def _windows(self, observation: Observation) -> list[tuple[int, int]]:
        """Kernel and shift of each KV head, or one pair for all."""
        if not self.adaptive or observation.drift is None:
            return [(self.kernel, 0)]
        front, rear = reduce_groups(observation.drift, observation.n_head_kv).T
        return [
            adaptive_window(float(drift), self.kernel, self.scale, self.shift_at_zero)
            for drift in front - rear
        ]
