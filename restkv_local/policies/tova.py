"""TOVA: keep the tokens that the last query looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.policies.base import Policy, reduce_groups, to_scores
from restkv_local.types import F32, Observation, ObservationRequest


@dataclass(frozen=True, kw_only=True)
class TOVA(Policy):
    """Attention of the last query, mean over all heads of the layer.

    ``score[n] = mean over query heads h of a_h[n]``: one score for a token, the
    same in every KV head, so that all of them keep the same tokens.

    Notes
    -----
    In bounded prefill, the last query is the last token of the question, if
    there is one, else of the text read so far; in full prefill, the last token
    of the prompt, as published; in decode, the newest token. The repository [2]_
    evicts after every decoded token, here an event evicts many.

    The repository protects nothing: the first tokens and the newest one compete.
    Here they are protected as for every policy, because decoding goes on from the
    newest row. After an unequal allocation KV heads may hold different tokens; a head that
    does not hold a token gives it nothing.

    References
    ----------
    .. [1] Oren et al., "Transformers are Multi-State RNNs", 2024, arXiv:2401.06104.
    .. [2] schwartz-lab-NLP/TOVA.
    """

    name: ClassVar[str] = "tova"
    summary: ClassVar[str] = "most attention from the last query, the same tokens in all heads"
    source: ClassVar[str] = "Oren et al., TOVA, 2024, arXiv:2401.06104"

    def request(self, n_obs: int, max_position: int, n_select: int) -> ObservationRequest:
        """Ask for the attention of the newest query."""
        return ObservationRequest(reductions=("last",))

    def score(self, observation: Observation) -> F32:
        """Score the rows of one layer: (n_head_kv, n_kv)."""
        by_head = reduce_groups(observation.attention["last"], observation.n_head_kv)
        # By position: the same place may hold another token in another head.
        tokens, token = np.unique(observation.positions, return_inverse=True)
        total = np.bincount(token.ravel(), weights=by_head.ravel(), minlength=tokens.size)
        mean = total / observation.n_head_kv
        return to_scores(mean[token.reshape(by_head.shape)])
