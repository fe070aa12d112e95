"""DefensiveKV: prepare for the worst case, not for the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.config import DEFAULTS, Config
from restkv_local.errors import ConfigError
from restkv_local.policies.base import Policy, reduce_groups, to_scores
from restkv_local.policies.smoothing import Pooling, smooth_rows
from restkv_local.policies.stages import protected_rows, put_first, strongest
from restkv_local.types import F32, F64, I32, Bool, Observation, ObservationRequest


@dataclass(frozen=True, kw_only=True)
class DefensiveKV(Policy):
    """The highest attention a row ever got, never below the head's mean, times its value.

    ``m[n]``, the maximum over the observed queries and the group's heads of the
    pooled attention; ``score[n] = max(m[n], mean m) * u[n]``, where ``u`` is the
    group's mean of ``||v_n W_O||_2`` over the sum of the KV heads' means. Before
    all others stay the rows that hold ``mass`` of the mean attention together
    with the protected ones.

    Attributes
    ----------
    kernel : int
        Neighbourhood in rows, odd. The release has 5.
    pooling : {"mean", "max"}
        What is taken of the neighbourhood; the release takes the mean.
    mass : float
        Share of the mean attention that is covered first, in [0, 1].

    Notes
    -----
    Where this differs from the released code [2]_, and why:

    - It pools the attention of each query, then takes the maximum. What is observed
      is the maximum over the queries, so pooling follows: an upper bound, and equal
      with ``pooling="max"``.
    - It pools zeros in beyond the ends and rescales for it. Here the end rows stand
      in, which needs no rescaling.
    - Its norm is L1 over the model's width; here it is L2, as in criticalkv.
    - It divides a row's norm by the sum of the KV heads' norms of that row. After
      an eviction heads hold different rows, so the divisor is one figure of the
      layer: heads and layers stay comparable, and within a head the norms count in full.
    - It covers ``mass`` of the past's attention, less a share that is cut from the
      past where the window's seems meant, and stops one row short. Here protected rows
      count with what they have, and the row that reaches ``mass`` is in.
    - It raises these rows before budgets are split, at most the mean budget of them.
      A score does not know the budget, so here they come first within a head's
      share; with equal shares that is the same.

    In bounded prefill, the window is the question, if there is one, else the newest
    queries; in full prefill, the end of the prompt, as published; in decode, the
    newest tokens. The release compresses once. Its layer-wise form splits one
    budget over all layers and heads: the allocation ``global``.

    References
    ----------
    .. [1] Feng et al., "Taming the Fragility of KV Cache Eviction in LLM Inference",
       ICLR 2026, arXiv:2510.13334.
    .. [2] FFY0/DefensiveKV.
    """

    name: ClassVar[str] = "defensivekv"
    summary: ClassVar[str] = "highest attention of any query, floored at the mean, times the value"
    source: ClassVar[str] = "Feng et al., DefensiveKV, ICLR 2026, arXiv:2510.13334"

    kernel: int = DEFAULTS.kernel
    pooling: Pooling = "mean"
    mass: float = 0.9

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 <= self.mass <= 1:
            raise ConfigError(f"mass must be within [0, 1]; got mass={self.mass}")

    @classmethod
    def from_config(cls, config: Config) -> DefensiveKV:
        """Build the policy from the options it understands."""
        return cls(kernel=config.kernel)

    def request(self, n_obs: int, max_position: int, n_select: int) -> ObservationRequest:
        """Ask for maximum and mean of the attention, and the projected values' norms."""
        return ObservationRequest(reductions=("max", "mean"), value_norm=True)

    def score(self, observation: Observation) -> F32:
        """Score the rows of one layer: (n_head_kv, n_kv)."""
        assert observation.value_norm is not None, "score() got less than request() asked for"
        present = observation.positions >= 0
        risk = self._risk(observation)
        past = present & (np.arange(observation.n_kv) < observation.n_kv - observation.n_window)
        # A head may hold the window alone: then its mean is the window's.
        past = np.where(past.any(axis=1, keepdims=True), past, present)
        floored = np.maximum(risk, _mean(risk, past)[:, None])
        norm = reduce_groups(observation.value_norm, observation.n_head_kv)
        total = _mean(norm, present).sum()
        return to_scores(floored * (norm / total if total > 0 else norm))

    def rerank(self, scores: F32, observation: Observation, candidates: Bool, n_select: I32) -> F32:
        """Put the rows that hold most of the mean attention first: (n_head_kv, n_kv)."""
        attention = reduce_groups(observation.attention["mean"], observation.n_head_kv)
        attention = attention[:, : scores.shape[1]]
        held = np.where(protected_rows(observation, candidates), attention, 0.0)
        free = np.where(candidates, attention, 0.0)
        ranked = -np.sort(-free, axis=-1)
        before = held.sum(axis=-1, keepdims=True) + np.cumsum(ranked, axis=-1) - ranked
        wanted = self.mass * (held + free).sum(axis=-1, keepdims=True)
        n_first = np.minimum(np.count_nonzero(before < wanted, axis=-1), n_select)
        return put_first(scores, strongest(attention, candidates, n_first))

    def _risk(self, observation: Observation) -> F64:
        """Pooled attention in the worst case over queries and heads: (n_head_kv, n_kv)."""
        attention = observation.attention["max"].astype(np.float64)
        n_gqa = attention.shape[0] // observation.n_head_kv
        pooled = smooth_rows(
            attention,
            observation.n_window,
            [(self.kernel, 0)],
            self.pooling,
            n_absent=np.repeat(observation.n_absent, n_gqa),
        )
        return reduce_groups(pooled, observation.n_head_kv, "max")


def _mean(values: F64, rows: Bool) -> F64:
    """Mean of each head over its marked rows, 0 where none is: (n_head_kv,)."""
    n_rows = np.maximum(np.count_nonzero(rows, axis=-1), 1)
    mean: F64 = np.where(rows, values, 0.0).sum(axis=-1) / n_rows
    return mean
