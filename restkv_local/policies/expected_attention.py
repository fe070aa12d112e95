"""Expected Attention: keep what queries yet to come are expected to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from restkv_local.config import Config
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

    kvpress [2]_ leaves the first four tokens out of the moments and of the softmax.
    Which rows are protected is not the policy's to know: here they take their share
    of the softmax, and ``epsilon`` weighs that much more against the rest.

    References
    ----------
    .. [1] Devoto et al., "Expected Attention", 2025, arXiv:2510.00636.
    .. [2] NVIDIA/kvpress.
    """

    name: ClassVar[str] = "expected-attention"
    summary: ClassVar[str] = "attention expected from coming queries, times the value's length"
    source: ClassVar[str] = "Devoto et al., Expected Attention, 2025, arXiv:2510.00636"
    track: ClassVar[Tracked] = "queries"

    epsilon: float = 1e-2

    @classmethod
    def from_config(cls, config: Config) -> ExpectedAttention:
        """Build the policy with kvpress' constants."""
        return cls()

    def request(self, n_obs: int, max_position: int, n_select: int) -> ObservationRequest:
        """Ask for expected attention and the length of the values."""
        return ObservationRequest(key_score="expected", value_norm=True, project=False)

    def score(self, observation: Observation) -> F32:
        """Score the rows of one layer: (n_head_kv, n_kv)."""
        assert observation.key_score is not None, "score() got less than request() asked for"
        assert observation.value_norm is not None, "score() got less than request() asked for"
        expected = reduce_groups(observation.key_score, observation.n_head_kv)
        length = reduce_groups(observation.value_norm, observation.n_head_kv)
        return to_scores((expected + self.epsilon) * length)
