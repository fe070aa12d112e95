"""H2O: keep the heavy hitters and the newest tokens, half and half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.errors import ConfigError
from restkv_local.policies.base import Policy
from restkv_local.policies.stages import newest, protected_rows, put_first
from restkv_local.types import F32, I32, Bool, Observation, Tracked


@dataclass(frozen=True, kw_only=True)
class H2O(Policy):
    """Most attention received from all queries so far, beside a window of the newest rows.

    ``score[n] = sum over all queries t of a_t[n]``. The newest ``recent_ratio``
    of the budget stays; the heaviest of the older rows fill the rest.

    Attributes
    ----------
    recent_ratio : float
        Share of a KV head's budget that goes to its newest rows, in [0, 1].
        Protected newest rows count towards it. The repository's runs give
        recent and heavy rows the same share.

    Notes
    -----
    A sum favours old rows, which more queries have seen: that is the published
    rule, and the newest rows are kept because of it. The figure of a row goes
    with the row; survivors keep adding.

    In bounded prefill, the queries of each chunk add to the rows in the cache
    while they read it; in full prefill, all queries of the prompt do before the
    one eviction; in decode, every generated token does. No window is observed, so
    a question chooses nothing.

    The repository [2]_ sums and selects per attention head. Here query heads that
    share a KV head are averaged, and the first tokens are protected as for every
    policy; there they stay because they are heavy.

    References
    ----------
    .. [1] Zhang et al., "H2O: Heavy-Hitter Oracle", NeurIPS 2023, arXiv:2306.14048.
    .. [2] FMInference/H2O.
    """

    name: ClassVar[str] = "h2o"
    summary: ClassVar[str] = "most attention from all queries so far, and the newest rows"
    source: ClassVar[str] = "Zhang et al., H2O, NeurIPS 2023, arXiv:2306.14048"
    track: ClassVar[Tracked] = "sum"

    recent_ratio: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 <= self.recent_ratio <= 1:
            raise ConfigError(
                f"recent_ratio must be within [0, 1]; got recent_ratio={self.recent_ratio}"
            )

    def score(self, observation: Observation) -> F32:
        """Score the rows of one layer: (n_head_kv, n_kv), sums of attention."""
        assert observation.tracked is not None, "score() got less than track asked for"
        return observation.tracked

    def rerank(self, scores: F32, observation: Observation, candidates: Bool, n_select: I32) -> F32:
        """Put the newest rows first: (n_head_kv, n_kv)."""
        protected = protected_rows(observation, candidates)
        newer = np.cumsum(candidates[:, ::-1], axis=-1)[:, ::-1] == 0  # than the last candidate
        n_budget = n_select + np.count_nonzero(protected, axis=-1)
        n_recent = np.floor(self.recent_ratio * n_budget).astype(np.int32)
        n_more = n_recent - np.count_nonzero(protected & newer, axis=-1)
        return put_first(scores, newest(candidates, np.clip(n_more, 0, n_select)))
