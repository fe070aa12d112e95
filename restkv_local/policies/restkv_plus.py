"""ReST-KV+: worst-case attention where the window looked, the change of the layer's output elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.config import DEFAULTS, Config
from restkv_local.policies.base import Policy, reduce_groups, to_scores
from restkv_local.policies.smoothing import smooth_rows
from restkv_local.types import F32, F64, REST_MIN, Observation, ObservationRequest


@dataclass(frozen=True, kw_only=True)
class RestKVPlus(Policy):
    """The attention of whoever wants a row most, or its change of the output for a query that wants none in particular.

    ``max(pool(max_{h,w} a), a_0 * m / m_0)`` with ``m = mean_h ||(v - o_h) W_O||_2 / (1 - a_h)``. The first
    term is what any query of any head in the group wants, not what they want on average. The second is
    ReST-KV's indicator for the mean attention ``a_0`` of the past: how far the output would move without
    the row, in units of the head's mean ``m_0``. Rows that the window looked at rank by the first, all others by
    their values.

    Meant for the allocation ``global``: both terms are shares of attention, comparable between
    heads, and heads that look at little give their rows away.

    Attributes
    ----------
    kernel : int
        Neighbourhood in rows, odd.
    use_wo : bool
        Take distances after the output projection.

    Notes
    -----
    Plain ``restkv`` is the paper's rule and weighs the newest queries most. This one
    keeps its indicator for rows that the window says nothing about, and takes the aggregation
    of [2]_ for the others. With the product of both terms instead, needles with an unknown
    question were found 4 of 5 times at 25 % instead of 5, and KL divergence on text was 0.12 instead of 0.08.

    References
    ----------
    .. [1] An et al., "ReST-KV", ICLR 2026, arXiv:2605.08840.
    .. [2] Feng et al., "Taming the Fragility of KV Cache Eviction in LLM Inference",
       ICLR 2026, arXiv:2510.13334.
    """

    name: ClassVar[str] = "restkv+"
    summary: ClassVar[str] = "what any query wants most, elsewhere ReST-KV's change of the output"
    source: ClassVar[str] = (
        "ReST-KV, arXiv:2605.08840, with DefensiveKV's attention, arXiv:2510.13334"
    )

    kernel: int = DEFAULTS.kernel
    use_wo: bool = DEFAULTS.use_wo

    @classmethod
    def from_config(cls, config: Config) -> RestKVPlus:
        """Build the policy from the options it understands."""
        return cls(kernel=config.kernel, use_wo=config.use_wo)

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
        usual = _past_mean(moved, observation)
        change = np.divide(moved, usual, out=np.zeros_like(moved), where=usual > 0)
        return to_scores(np.maximum(pooled, _past_mean(pooled, observation) * change))


def _moved(observation: Observation) -> F64:
    """Distance of each value to its head's output without it: (n_head, n_kv)."""
    assert observation.distance is not None, "score() got less than request() asked for"
    attention = observation.attention["mean"].astype(np.float64)
    distance = observation.distance.astype(np.float64)
    rest = 1.0 - attention
    taken = rest < REST_MIN
    moved = np.where(taken, 0.0, distance / np.maximum(rest, REST_MIN))
    # With all the attention a value equals the output in every digit. What is left without it
    # is some mean of the others: nothing lies further from it than the furthest of them does now.
    return np.where(taken, moved.max(axis=-1, keepdims=True), moved)


def _past_mean(values: F64, observation: Observation) -> F64:
    """Mean of each KV head over its rows before the window, or over all where there are none."""
    present = observation.positions >= 0
    past = present & (np.arange(observation.n_kv) < observation.n_kv - observation.n_window)
    rows = np.where(past.any(axis=1, keepdims=True), past, present)
    total = np.where(rows, values, 0.0).sum(axis=1, keepdims=True)
    mean: F64 = total / np.maximum(np.count_nonzero(rows, axis=1, keepdims=True), 1)
    return mean
