"""ReST-KV+: ReST-KV's indicator for whoever wants a row most, with half the weight on the distance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from restkv_local.config import DEFAULTS, Config
from restkv_local.policies.base import Policy, reduce_groups, to_scores
from restkv_local.policies.smoothing import smooth_rows
from restkv_local.types import F32, F64, REST_MIN, Observation, ObservationRequest


@dataclass(frozen=True, kw_only=True)
class RestKVPlus(Policy):
    """The attention of whoever wants a row most, times the root of how far the output moves without it.

    ``s = pool(max_{h,w} a) * m ** tau`` with ``m = mean_h ||(v - o_h) W_O||_2 / (1 - a_h)``, ``a_h`` and ``o_h``
    the mean attention and output of the window. The first factor is what any query of any head in the
    group wants, not what they want on average or last; the second is ReST-KV's change of the output.
    A row is worth at least ``floor * s_0 * m / m_0``, the means of the past: rows that nobody looks at are told
    apart by their values alone.

    Meant for the allocation ``global``: heads that look at little, and layers whose output hardly moves,
    give their rows away.

    Attributes
    ----------
    kernel : int
        Neighbourhood in rows, odd; of the attention alone.
    use_wo : bool
        Take distances after the output projection.
    tau : float
        Exponent of the change.
    floor : float
        Least worth of a row with the usual change, in units of the mean worth.

    Notes
    -----
    Plain ``restkv`` is the paper's rule: it weighs the newest queries most, which in a chat are the
    template's, not the question's. The aggregation here is that of [2]_. Exponent and floor were chosen on
    needles and text: exponents 0 and 0.5 cannot be told apart there, 1 costs KL divergence; without the floor
    nothing is found if the question is unknown, with floor 1 divergence at 25 % doubles.
    ``benchmarks/results/ranking.md`` has the figures.

    References
    ----------
    .. [1] An et al., "ReST-KV", ICLR 2026, arXiv:2605.08840.
    .. [2] Feng et al., "Taming the Fragility of KV Cache Eviction in LLM Inference",
       ICLR 2026, arXiv:2510.13334.
    """

    name: ClassVar[str] = "restkv+"
    summary: ClassVar[str] = (
        "what any query wants most, times the root of ReST-KV's change of the output"
    )
    source: ClassVar[str] = (
        "ReST-KV, arXiv:2605.08840, with DefensiveKV's attention, arXiv:2510.13334"
    )

    kernel: int = DEFAULTS.kernel
    use_wo: bool = DEFAULTS.use_wo
    tau: float = 0.5
    floor: float = 0.5

    @classmethod
    def from_config(cls, config: Config) -> RestKVPlus:
        """Build the policy from the options it understands."""
        return cls(kernel=config.kernel, use_wo=config.use_wo)

    def guided(self) -> RestKVPlus:
        """Return the policy for a question: without the floor.

        Rows with large values would stay from eviction to eviction until they are all there is.
        """
        return replace(self, floor=0.0)

    def request(self, n_obs: int, max_position: int, n_select: int) -> ObservationRequest:
        """Ask for mean and maximum of the attention, and distances to the mean output."""
        return ObservationRequest(
            reductions=("mean", "max"), distance="aggregate", project=self.use_wo
        )

    def score(self, observation: Observation) -> F32:
        """Score the rows of one layer: (n_head_kv, n_kv)."""
        most = reduce_groups(observation.attention["max"], observation.n_head_kv, "max")
        pooled = smooth_rows(
            most, observation.n_window, [(self.kernel, 0)], n_absent=observation.n_absent
        )
        moved = reduce_groups(_moved(observation), observation.n_head_kv)
        worth = pooled * moved**self.tau
        if self.floor == 0.0:
            return to_scores(worth)
        usual = _past_mean(moved, observation)
        change = np.divide(moved, usual, out=np.zeros_like(moved), where=usual > 0)
        return to_scores(np.maximum(worth, self.floor * _past_mean(worth, observation) * change))


def _moved(observation: Observation) -> F64:
    """Distance of each value to its head's output without it: (n_head, n_kv)."""
    assert observation.distance is not None, "score() got less than request() asked for"
    rest = 1.0 - observation.attention["mean"]
    taken = rest < REST_MIN
    moved: F64 = np.divide(
        observation.distance, np.maximum(rest, np.float32(REST_MIN)), dtype=np.float64
    )
    if taken.any():
        # With all the attention a value equals the output in every digit. What is left without it
        # is some mean of the others: nothing lies further from it than the furthest of them does now.
        moved[taken] = 0.0
        moved = np.where(taken, moved.max(axis=-1, keepdims=True), moved)
    return moved


def _past_mean(values: F64, observation: Observation) -> F64:
    """Mean of each KV head over its rows before the window, or over all where there are none."""
    present = observation.positions >= 0
    past = present & (np.arange(observation.n_kv) < observation.n_kv - observation.n_window)
    rows = np.where(past.any(axis=1, keepdims=True), past, present)
    total = np.where(rows, values, 0.0).sum(axis=1, keepdims=True)
    mean: F64 = total / np.maximum(np.count_nonzero(rows, axis=1, keepdims=True), 1)
    return mean
