"""CriticalKV: half by attention alone, half by attention and what the values do to the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.errors import ConfigError
from restkv_local.policies.base import reduce_groups, to_scores
from restkv_local.policies.snapkv import SnapKV
from restkv_local.policies.stages import protected_rows, put_first, strongest
from restkv_local.types import F32, I32, Bool, Observation, ObservationRequest


@dataclass(frozen=True, kw_only=True)
class CriticalKV(SnapKV):
    """SnapKV's rows for half of the budget, then the rows that bound the output's change.

    With ``s`` the score of SnapKV: the first stage keeps the highest ``s``, the
    second the highest ``(s[n] + epsilon) * mean over the group of ||v_n W_O||_2``.
    What :meth:`score` returns is ``s``: allocators split by it, as kvpress'
    CriticalAdaKV does, and the stages follow within each KV head's share.

    Attributes
    ----------
    first_stage : float
        Share of a KV head's budget chosen by ``s`` alone, in [0, 1]. Protected
        rows count towards it: in kvpress the window ranks first.
    epsilon : float
        Added to ``s`` in the second stage.

    Notes
    -----
    The paper's bound and kvpress take the L1 norm of ``v W_O`` over the model's
    width. Here W_O is folded into a square matrix of the head's width, which keeps
    L2 norms exactly and no others, so L2 it is.

    In bounded prefill, the window is the question, if there is one, else the newest
    queries; in full prefill, the end of the prompt, as published; in decode, the
    newest tokens. The sources compress once, after the prompt.

    References
    ----------
    .. [1] Feng et al., "CriticalKV", ICML 2026, arXiv:2502.03805; NVIDIA/kvpress.
    """

    name: ClassVar[str] = "criticalkv"
    summary: ClassVar[str] = "SnapKV for half the budget, then attention times projected value"
    source: ClassVar[str] = "Feng et al., CriticalKV, ICML 2026, arXiv:2502.03805"

    first_stage: float = 0.5
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 <= self.first_stage <= 1:
            raise ConfigError(
                f"first_stage must be within [0, 1]; got first_stage={self.first_stage}"
            )

    def request(self, n_obs: int, max_position: int, n_select: int) -> ObservationRequest:
        """Ask for the mean attention and the projected values' norms."""
        return ObservationRequest(reductions=("mean",), value_norm=True)

    def rerank(self, scores: F32, observation: Observation, candidates: Bool, n_select: I32) -> F32:
        """Choose in two stages: (n_head_kv, n_kv)."""
        assert observation.value_norm is not None, "rerank() got less than request() asked for"
        norm = reduce_groups(observation.value_norm, observation.n_head_kv)
        second = to_scores((scores + np.float64(self.epsilon)) * norm[:, : scores.shape[1]])
        n_protected = np.count_nonzero(protected_rows(observation, candidates), axis=-1)
        n_stage = np.floor(self.first_stage * (n_select + n_protected)).astype(np.int32)
        n_first = np.clip(n_stage - n_protected, 0, n_select)
        return put_first(second, strongest(scores, candidates, n_first))
