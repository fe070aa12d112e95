"""KeyDiff: keep the keys that differ most from the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from restkv_local.policies.base import Policy
from restkv_local.types import F32, Observation, ObservationRequest


@dataclass(frozen=True, kw_only=True)
class KeyDiff(Policy):
    """Low cosine to the mean direction of the head's keys.

    ``score[n] = -cos(k_n, mean_m k_m / ||k_m||)``, over the rows in the cache.

    Notes
    -----
    Keys are taken as they are cached, after RoPE, as in the sources; where
    positions are compact they are rotated again with each eviction, and their
    directions with them.

    No query is looked at, so a question chooses nothing. In bounded prefill the
    mean is over the survivors and the text read since, as in the paper's block-wise
    reading; in full prefill over the whole prompt; in decode over what is cached.

    References
    ----------
    .. [1] Park et al., "KeyDiff", 2025, arXiv:2504.15364; NVIDIA/kvpress.
    """

    name: ClassVar[str] = "keydiff"
    summary: ClassVar[str] = "keys least like the mean key, without attention"
    source: ClassVar[str] = "Park et al., KeyDiff, 2025, arXiv:2504.15364"

    def request(self, n_obs: int, max_position: int, n_select: int) -> ObservationRequest:
        """Ask for the cosines."""
        return ObservationRequest(key_score="difference")

    def score(self, observation: Observation) -> F32:
        """Score the rows of one layer: (n_head_kv, n_kv), in [-1, 1]."""
        assert observation.key_score is not None, "score() got less than request() asked for"
        return -observation.key_score
