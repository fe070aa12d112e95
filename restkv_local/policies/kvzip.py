"""KVzip: keep the rows that it takes to repeat the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from restkv_local.policies.base import Policy, to_scores
from restkv_local.types import F32, F64, Observation, Tracked


@dataclass(frozen=True, kw_only=True)
class KVzip(Policy):
    """A row is worth the most attention that any token gave it when the model repeated the text.

    ``max_{h,w} a[h, w]`` over the query heads ``h`` of the group and every query ``w``
    of a second reading, which is read as a probe and dropped again. What it takes to say a text again serves
    whatever is asked about it: the rule for questions that are not known yet.

    Attention is a share, so scores compare between heads as they are, and the allocation
    ``global`` takes them so.

    Notes
    -----
    The source repeats a text that is in the cache as a whole, in parts of 2,048 tokens,
    with a request in the model's own chat template. Here what was read since the last eviction is
    repeated when the next one is due, in parts of 256 after a plain request, and a row keeps
    its highest score through later evictions. Rows of a part also count what they do for
    others. The second reading takes about as long as the first, and rows for a part.

    References
    ----------
    .. [1] Kim et al., "KVzip: Query-Agnostic KV Cache Compression with Context
       Reconstruction", NeurIPS 2025, arXiv:2505.23416; repository snu-mllab/KVzip.
    """

    name: ClassVar[str] = "kvzip"
    summary: ClassVar[str] = "what it takes to repeat the text, for questions that are not known"
    source: ClassVar[str] = "Kim et al., KVzip, NeurIPS 2025, arXiv:2505.23416"
    track: ClassVar[Tracked] = "repeat"
    comparable: ClassVar[bool] = True

    def score(self, observation: Observation) -> F32:
        """Score the rows of one layer: (n_head_kv, n_kv), shares of attention."""
        assert observation.tracked is not None, "score() got less than track asked for"
        most: F64 = observation.tracked.astype("float64")
        return to_scores(most)
