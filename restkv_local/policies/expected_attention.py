"""Expected Attention: keep what queries yet to come are expected to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.config import DEFAULTS, Config
from restkv_local.policies.base import Policy, reduce_groups, to_scores
from restkv_local.types import F32, Observation, ObservationRequest, Tracked


@dataclass(frozen=True, kw_only=True)
class ExpectedAttention(Policy):
    """Attention expected from normally distributed queries, times the length of the value.

    ``score[n] = (mean over the group of p_h[n] + epsilon) * ||v_n||_2`` with
    ``p_h = softmax_n(mu'k_n / sqrt(d) + k_n'C k_n / 2d)``, where ``mu`` and ``C``
    are mean and covariance of the queries so far, rotated by the mean RoPE matrix
    of the positions ahead, 512 in kvpress.

    Attributes
    ----------
    n_sink : int
        First rows that take no part in the softmax, as in kvpress: what they would draw says
        nothing about the others.
    epsilon : float
        Added to the expected attention, so that rows expected to get nothing are
        ranked by their values. kvpress' class has 0, its evaluation entry
        ``adakv_expected_attention_e2`` has 1e-2, which is taken here.

    Notes
    -----
    In bounded prefill, the moments are those of every query read so far, of
    evicted tokens too; in full prefill those of the prompt, as published; in decode
    those of prompt and answer. A question is a few queries among many, so it
    chooses next to nothing.

    kvpress [2]_ leaves the first four tokens out of the moments too; here every query
    counts, which changes no kept row in a thousand.

    References
    ----------
    .. [1] Devoto et al., "Expected Attention", 2025, arXiv:2510.00636.
    .. [2] NVIDIA/kvpress.
    """

    name: ClassVar[str] = "expected-attention"
    summary: ClassVar[str] = "attention expected from coming queries, times the value's length"
    source: ClassVar[str] = "Devoto et al., Expected Attention, 2025, arXiv:2510.00636"
    track: ClassVar[Tracked] = "queries"

    n_sink: int = DEFAULTS.n_sink
    epsilon: float = 1e-2

    @classmethod
    def from_config(cls, config: Config) -> ExpectedAttention:
        """Build the policy from the options it understands."""
        return cls(n_sink=config.n_sink)

    def request(self, n_obs: int, max_position: int, n_select: int) -> ObservationRequest:
        """Ask for expected attention and the length of the values."""
        return ObservationRequest(key_score="expected", value_norm=True, project=False)

    def score(self, observation: Observation) -> F32:
        """Score the rows of one layer: (n_head_kv, n_kv)."""
        assert observation.key_score is not None, "score() got less than request() asked for"
        assert observation.value_norm is not None, "score() got less than request() asked for"
        share = observation.key_score.astype(np.float64)
        rows = np.arange(observation.n_kv) - observation.n_absent[:, None]
        n_gqa = share.shape[0] // observation.n_head_kv
        sinks = np.repeat((rows >= 0) & (rows < self.n_sink), n_gqa, axis=0)
        rest = np.where(sinks, 0.0, share).sum(axis=-1, keepdims=True)
        share = np.where(sinks, share, share / np.maximum(rest, np.finfo(np.float32).tiny))
        expected = reduce_groups(share, observation.n_head_kv)
        length = reduce_groups(observation.value_norm, observation.n_head_kv)
        return to_scores((expected + self.epsilon) * length)
